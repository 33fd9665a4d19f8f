/** The version of this library, for people. */
import { createRequire } from 'node:module';
import { HERE } from '../here.js';

/** As in package.json; `unknown` in a bundle without it. */
export function libraryVersion(): string {
  try {
    const { version } = createRequire(HERE)('anydma/package.json') as { version: string };
    return version;
  } catch {
    return 'unknown';
  }
}
