/**
 * A lint rule for the order of the rooms (docs/architecture.md): imports only point to earlier rooms, some packages
 * belong to one room, and no files import each other in a circle. Type imports count like all others. Paths are resolved,
 * not compared as text, so that a file `platform/memory.ts` is not taken for the room `memory`.
 */
import { readFileSync, statSync } from 'node:fs';
import { dirname, relative, resolve, sep } from 'node:path';
import ts from 'typescript';

/** What each file imports, by path; read anew when the file has changed, because editors keep the rule loaded. */
const known = new Map();

/** The source files that a source file imports by relative path; none when there is no such file. */
function importsOf(file) {
  const stat = statSync(file, { throwIfNoEntry: false });
  if (stat === undefined) return [];
  const entry = known.get(file);
  if (entry?.mtimeMs === stat.mtimeMs) return entry.files;
  const files = ts
    .preProcessFile(readFileSync(file, 'utf8'))
    .importedFiles.map(({ fileName }) => fileName)
    .filter(isRelative)
    .map((specifier) => sourceOf(file, specifier));
  known.set(file, { mtimeMs: stat.mtimeMs, files });
  return files;
}

const isRelative = (specifier) => /^\.\.?\//.test(specifier);

const sourceOf = (importer, specifier) => resolve(dirname(importer), specifier).replace(/\.js$/, '.ts');

/** The files on a way along imports from `from` to `to`, both included; `undefined` when there is none. */
function wayTo(from, to, seen = new Set()) {
  if (from === to) return [to];
  seen.add(from);
  for (const next of importsOf(from)) {
    if (seen.has(next)) continue;
    const rest = wayTo(next, to, seen);
    if (rest !== undefined) return [from, ...rest];
  }
  return undefined;
}

/**
 * Options: `root`, the absolute folder that the rooms are in; `rooms`, the list of rooms in order, each a list of paths of
 * folders or files under `root`, files without `.ts` (with it where a folder has the same name); `packages`, which folder alone
 * may import a package.
 */
export const roomsRule = {
  meta: {
    type: 'problem',
    schema: [{ type: 'object' }],
    messages: {
      noRoom: '{{file}} is in no room: add it to ROOMS in eslint.config.js.',
      outside: 'The package has nothing but src/: it may not import {{to}}.',
      later: '{{from}} may not import {{to}}: imports only point to earlier rooms.',
      test: 'Tests are not part of the package: nothing may import {{file}}.',
      package: 'Only {{room}} may import {{name}}.',
      circle: 'These files import each other in a circle: {{way}}.',
    },
  },
  create(context) {
    const { root, rooms, packages } = context.options[0];
    const { filename } = context;
    const name = (file) => relative(root, file).split(sep).join('/');
    const isIn = (file, path) => [path, `${path}.ts`].includes(name(file)) || name(file).startsWith(`${path}/`);

    /** Which room a file is in: that of the longest path that it lies in; -1 for none. */
    function roomIndex(file) {
      let longest = '';
      let found = -1;
      for (const [index, paths] of rooms.entries())
        for (const path of paths)
          if (path.length > longest.length && isIn(file, path)) [longest, found] = [path, index];
      return found;
    }
    const isTest = filename.endsWith('.test.ts');

    function check(source) {
      if (source?.type !== 'Literal' || typeof source.value !== 'string') return;
      const report = (messageId, data) => context.report({ node: source, messageId, data });
      if (!isRelative(source.value)) {
        const room = packages[source.value.replace(/^(@[^/]+\/[^/]+|[^/]+).*/, '$1')];
        if (room !== undefined && !isIn(filename, room)) report('package', { room, name: source.value });
        return;
      }
      const target = sourceOf(filename, source.value);
      if (target.endsWith('.test.ts')) report('test', { file: name(target) });
      if (isTest) return;
      if (name(target).startsWith('../')) return report('outside', { to: name(target) });
      if (roomIndex(target) > roomIndex(filename)) report('later', { from: name(filename), to: name(target) });
      const way = wayTo(target, filename);
      if (way !== undefined) report('circle', { way: [filename, ...way].map(name).join(' → ') });
    }

    return {
      Program(node) {
        if (isTest || roomIndex(filename) !== -1) return;
        context.report({ node, messageId: 'noRoom', data: { file: name(filename) } });
      },
      ImportDeclaration: (node) => check(node.source),
      ExportNamedDeclaration: (node) => check(node.source),
      ExportAllDeclaration: (node) => check(node.source),
      ImportExpression: (node) => check(node.source),
      TSImportType: (node) => check(node.source ?? node.argument.literal),
      'CallExpression[callee.name="require"]': (node) => check(node.arguments[0]),
    };
  },
};
