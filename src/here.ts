/** The location of this library. */
import { pathToFileURL } from 'node:url';

const url = import.meta.url as string | undefined;

/** URL of this file, or of the bundle that it is in: a bundle of CommonJS has no `import.meta.url`. */
export const HERE: string = url ?? pathToFileURL(typeof __filename === 'string' ? __filename : process.execPath).href;
