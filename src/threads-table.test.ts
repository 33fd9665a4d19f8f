/**
 * What may be used from which thread: each public class is in the table of docs/threads-and-processes.md, and an object of it can not be
 * sent to another thread, which is the only way to a wrong use.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { describe, it } from 'node:test';
import { STAYS } from './stays.js';

const ROOT = resolve(import.meta.dirname, '../..');
const SRC = join(ROOT, 'src');

/** Data, which every thread may have a copy of, and errors. */
const PLAIN = ['Range', 'DmaError', 'NvmeError'];

/** Kept by a part of them (their heap, area, domain), as there are so many of them: share/attach.test.ts sends them. */
const BY_A_PART = ['ExternalMemory', 'Block', 'Mapping'];

interface PublicClass {
  readonly name: string;
  readonly file: string;
}

/** The text of a class, and the name of what it extends. */
function classIn(file: string, name: string): { readonly body: string; readonly base: string | undefined } | undefined {
  const text = readFileSync(file, 'utf8');
  const head = new RegExp(
    `^(?:export )?(?:abstract )?class ${name}\\b(?:<[^>]*>)?(?: extends (\\w+))?[^{]*\\{`,
    'm',
  ).exec(text);
  if (head === null) return undefined;
  return { body: text.slice(head.index, text.indexOf('\n}\n', head.index)), base: head[1] };
}

/** Where a name comes from that a file imports or re-exports. */
function sourceOf(file: string, name: string): string | undefined {
  const text = readFileSync(file, 'utf8');
  for (const [, names, from] of text.matchAll(/(?:import|export) (?:type )?\{([^}]*)\} from '(\.[^']*)'/g))
    if (
      names.split(',').some(
        (each) =>
          each
            .trim()
            .replace(/^type /, '')
            .split(' as ')
            .at(-1) === name,
      )
    )
      return join(dirname(file), from.replace(/\.js$/, '.ts'));
  return undefined;
}

/** All classes that the entries of the package export. */
function publicClasses(): PublicClass[] {
  const entries = [join(SRC, 'index.ts'), ...readdirSync(join(SRC, 'entry')).map((file) => join(SRC, 'entry', file))];
  const found = new Map<string, PublicClass>();
  for (const entry of entries.filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts')))
    for (const [, names, from] of readFileSync(entry, 'utf8').matchAll(/export (?:type )?\{([^}]*)\} from '([^']*)'/g))
      for (const name of names.split(',').flatMap((each) => each.trim().replace(/^type /, '') || [])) {
        const [original, shown = original] = name.split(' as ');
        let file: string | undefined = join(dirname(entry), from.replace(/\.js$/, '.ts'));
        // Through files that only pass it on.
        for (let n = 0; n < 3 && file !== undefined && existsSync(file) && classIn(file, original) === undefined; n++)
          file = sourceOf(file, original);
        if (file !== undefined && existsSync(file) && classIn(file, original) !== undefined)
          found.set(`${file} ${original}`, { name: shown, file: `${file}#${original}` });
      }
  return [...found.values()];
}

/** Has it, or what it extends, the field that keeps it in its thread? */
function stays(file: string, name: string): boolean {
  const found = classIn(file, name);
  if (found === undefined) return false;
  if (found.body.includes('readonly stays = STAYS')) return true;
  const { base } = found;
  if (base === undefined) return false;
  return stays(classIn(file, base) === undefined ? (sourceOf(file, base) ?? file) : file, base);
}

describe('the table of threads', () => {
  const classes = publicClasses().filter(({ name }) => !PLAIN.includes(name));
  const document = readFileSync(join(ROOT, 'docs', 'threads-and-processes.md'), 'utf8');
  const table = /## What may be used from which thread\n[^]*?\n\n(\|[^]*?)\n\n/.exec(document)?.[1] ?? '';
  const listed = new Set([...table.matchAll(/`([A-Z]\w*)`/g)].map(([, name]) => name));

  it('has each public class', () => {
    assert.ok(classes.length > 50, `${classes.length} classes`);
    assert.deepEqual(
      classes.map(({ name }) => name).filter((name) => !listed.has(name)),
      [],
    );
  });

  it('has nothing that is not there', () => {
    const texts = readdirSync(SRC, { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts') && !file.endsWith('.test.ts'))
      .map((file) => readFileSync(join(SRC, file), 'utf8'))
      .join('\n');
    const unknown = [...listed].filter(
      (name) =>
        !new RegExp(`^export (?:abstract )?(?:class|interface|type) ${name}\\b`, 'm').test(texts) &&
        !(name in globalThis),
    );
    assert.deepEqual(unknown, []);
  });

  it('is kept: no object of these classes can be sent to another thread', () => {
    const sendable = classes.filter(({ file }) => {
      const [path, name] = file.split('#');
      return !BY_A_PART.includes(name) && !stays(path, name);
    });
    assert.deepEqual(
      sendable.map(({ name, file }) => `${name} in ${file.slice(SRC.length + 1)}`),
      [],
    );
    assert.throws(() => structuredClone({ stays: STAYS }), { name: 'DataCloneError', message: /stays in the thread/ });
  });
});
