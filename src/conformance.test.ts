/** The ids of docs/conformance.md against the names of tests: each is tested or says why not, and no other id is used. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const ID = /\b(EM-[A-D]|DM-|MA-|ME-|MZ-|MP-|EF-)(\d\d)(?: to (?:EM-[A-D]|[A-D]|DM-|MA-|ME-|MZ-|MP-|EF-)?(\d\d)\b)?/g;

function read(...path: string[]): string {
  return readFileSync(join(ROOT, ...path), 'utf8');
}

/** All ids in a text, those between the ends of `DM-30 to DM-33` as well. */
function idsIn(text: string): string[] {
  return [...text.matchAll(ID)].flatMap(([, kind, from, to = from]) =>
    Array.from({ length: Number(to) - Number(from) + 1 }, (_, n) => kind + String(Number(from) + n).padStart(2, '0')),
  );
}

/** The text without comments: what an id in a string is, is (part of) the name of a test. */
function withoutComments(source: string): string {
  return source.replace(/\/\*[^]*?\*\/|^\s*\/\/.*$/gm, '');
}

const rows = [...read('docs', 'conformance.md').matchAll(/^\| ([A-Z]+-\w+) +\| (.*?) +\|$/gm)];
const listed = new Map(rows.map(([, id, about]) => [id, about]));
const suites = ['src', join('test', 'vm', 'suites')].flatMap((folder) =>
  readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith(folder === 'src' ? '.test.ts' : '.ts') && !file.endsWith('conformance.test.ts'))
    .map((file) => withoutComments(read(folder, file))),
);
const tested = new Set(suites.flatMap(idsIn));

test('each case of docs/conformance.md is in the name of a test, or says that it is not here', () => {
  assert.ok(listed.size >= 120, `${listed.size} cases`);
  const missing = [...listed].filter(([id, about]) => !about.startsWith('not here: ') && !tested.has(id));
  assert.deepEqual(missing, []);
});

test('no case that is "not here" has a test, and no test or document has an id that is not listed', () => {
  const here = [...listed].filter(([, about]) => !about.startsWith('not here: ')).map(([id]) => id);
  assert.deepEqual([...tested].filter((id) => !here.includes(id)).sort(), []);
  const documents = [...readdirSync(join(ROOT, 'docs')).map((name) => join('docs', name)), 'README.md', 'CHANGELOG.md'];
  for (const path of documents.filter((each) => each.endsWith('.md')))
    assert.deepEqual([path, ...idsIn(read(path)).filter((id) => !listed.has(id))], [path]);
});
