/** What documents say about the sources: it has to be there. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { canCheck, checkDocument } from '../test/shared/json-schema.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

function read(...path: string[]): string {
  return readFileSync(join(ROOT, ...path), 'utf8');
}

/** The text of all sources below `folder` whose name ends with `end`. */
function sources(folder: string, end: string): string {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith(end))
    .map((file) => read(folder, file))
    .join('\n');
}

test('each test that SECURITY.md names is there, in a virtual machine where it says so', () => {
  const here = sources('src', '.test.ts');
  const guests = sources(join('test', 'vm', 'suites'), '.ts');
  const tables = read('SECURITY.md').match(/^\| guarantee .*\| test +\|(\n\|.*)+/gm) ?? [];
  const named = tables
    .flatMap((table) => table.split('\n').map((line) => line.split('|').at(-2) ?? ''))
    .flatMap((cell) => [...cell.matchAll(/`([^`]+)`( \(VM\))?/g)].map(([, name, vm]) => ({ name, vm })));
  const tests = named.filter(({ name }) => !name.startsWith('npm run '));
  assert.ok(tests.length > 30, `${tests.length} tests are named`);
  const missing = tests.filter(({ name, vm }) => !(vm === undefined ? here : guests).includes(name));
  assert.deepEqual(missing, []);
});

test('each link in README.md, SECURITY.md, CONTRIBUTING.md and docs/ leads to a file, and to a heading of it', () => {
  const pages = ['README.md', 'SECURITY.md', 'CONTRIBUTING.md', 'CHANGELOG.md'];
  pages.push(...readdirSync(join(ROOT, 'docs')).flatMap((name) => (name.endsWith('.md') ? [`docs/${name}`] : [])));
  const broken: string[] = [];
  let links = 0;
  for (const page of pages)
    for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      links++;
      const [path, heading] = target.split('#');
      const file = path === '' ? page : join(dirname(page), path);
      if (!existsSync(join(ROOT, file)) || (heading !== undefined && !headingsOf(read(file)).includes(heading)))
        broken.push(`${page}: ${target}`);
    }
  assert.ok(links > 50, `${links} links`);
  assert.deepEqual(broken, []);
});

/** The names that GitHub gives to headings. */
function headingsOf(markdown: string): string[] {
  return [...markdown.matchAll(/^#+ (.*)$/gm)].map(([, text]) =>
    text
      .toLowerCase()
      .replace(/[^\w\s-]/g, '')
      .replaceAll(' ', '-'),
  );
}

test('the pages that are made of the command are as it would make them now', () => {
  const { status, stderr } = spawnSync(process.execPath, ['scripts/make-pages.js', '--check'], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  assert.equal(status, 0, stderr);
});

test('documents that the command prints are checked against docs/json.schema.json, which knows each command', () => {
  assert.ok(canCheck, 'ajv is not installed: npm ci');
  const failure = { schema: 'map/1', ok: false, error: { code: 'EIO', operation: 'map', reason: 'it failed' } };
  checkDocument(failure);
  assert.throws(() => checkDocument({ ...failure, more: 1 }), /additional properties/);
  assert.throws(() => checkDocument({ ...failure, schema: 'map/2' }));
  assert.throws(() => checkDocument({ schema: 'map/1', ok: true }), /required/);
  const { $defs } = JSON.parse(read('docs', 'json.schema.json')) as { $defs: Record<string, unknown> };
  const commands = [...read('man', 'anydma.1').matchAll(/^\.SS anydma (\w+(?: \w+)?) \[options\](?! \[command)/gm)];
  assert.ok(commands.length > 10);
  for (const [, command] of commands) assert.ok(command.replace(' ', '-') in $defs, command);
});

const mandoc = spawnSync('mandoc', ['-Tlint', '/dev/null']).error === undefined;

test('the man page can be read', { skip: mandoc ? false : 'without mandoc' }, () => {
  const { status, stdout } = spawnSync('mandoc', ['-Tlint', '-Werror', 'man/anydma.1'], {
    cwd: ROOT,
    encoding: 'utf8',
  });
  assert.equal(status, 0, stdout);
  const page = spawnSync('mandoc', ['-Tascii', 'man/anydma.1'], { cwd: ROOT, encoding: 'utf8' }).stdout;
  // Bold text is each letter twice, with a backspace between.
  const plain = page.split('\b').reduce((text, part) => text.slice(0, -1) + part);
  for (const text of ['EXIT STATUS', 'anydma rdma write [options]', '--after-unmap', 'anydma explain EEXIST'])
    assert.ok(plain.includes(text), text);
});
