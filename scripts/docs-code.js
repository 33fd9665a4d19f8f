/**
 * Takes the TypeScript out of README.md and docs/: `node scripts/docs-code.js FOLDER` writes each block as a module, to be compiled
 * there where anydma is installed, and prints the names of those that can be run on any machine, one a line.
 *
 * A block that imports from anydma is a program: it is run, unless its fence says `ts no-run` (it needs a device). Any other block is a
 * part of a program: what it takes for granted is declared in FRAGMENT below.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

/** What parts of programs take for granted; all values that the package exports are there as well. */
const FRAGMENT = `
declare const eal: import('anydma').Eal;
declare const device: import('anydma').Device;
declare const memory: import('anydma').ExternalMemory;
declare const source: import('anydma').ExternalMemory;
declare const block: import('anydma').Block;
declare const address: number;
declare const rkey: number;
declare const va: import('anydma').ExternalMemory['va'];
declare const length: number;
declare const file: import('node:fs/promises').FileHandle;
declare const fill: (bytes: Uint8Array) => Promise<unknown>;
declare const gzip: (bytes: Uint8Array) => Promise<unknown>;
declare const worker: import('node:worker_threads').Worker;
declare const parentPort: import('node:worker_threads').MessagePort;
declare const once: typeof import('node:events').once;
`;

const [folder] = process.argv.slice(2);
if (folder === undefined) {
  console.error('usage: node scripts/docs-code.js FOLDER');
  process.exit(2);
}

const pages = [
  'README.md',
  ...readdirSync('docs')
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
];
const { exports } = JSON.parse(readFileSync('package.json', 'utf8'));
const entries = Object.keys(exports).filter((path) => path !== './package.json');
const declared = new Map();
for (const entry of entries.map((path) => `anydma${path.slice(1)}`))
  for (const name of Object.keys(await import(entry)))
    declared.set(name, `declare const ${name}: typeof import('${entry}').${name};`);
const exported = [...declared.values()].join('\n');
writeFileSync(join(folder, 'fragment.d.ts'), `${FRAGMENT}${exported}\n`);
for (const page of pages)
  for (const [n, { lines, flags, code }] of blocksOf(readFileSync(page, 'utf8')).entries()) {
    const name = `${basename(page, '.md').toLowerCase()}-${n + 1}`;
    const isProgram = /^import .* from 'anydma(?:\/[a-z-]+)?';$/m.test(code);
    const reference = isProgram ? '' : '/// <reference path="./fragment.d.ts" />\n';
    writeFileSync(join(folder, `${name}.mts`), `${reference}// ${page}, line ${lines}\n${code}\nexport {};\n`);
    if (isProgram && !flags.includes('no-run')) console.log(name);
  }

/** @param {string} text Markdown */
function blocksOf(text) {
  return [...text.matchAll(/^```ts(.*)\n([^]*?)^```$/gm)].map(({ 1: flags, 2: code, index }) => ({
    lines: text.slice(0, index).split('\n').length + 1,
    flags,
    code,
  }));
}
