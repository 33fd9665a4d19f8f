/**
 * Writes the pages that are made of the command: `node scripts/make-pages.js [--check]`. Build first.
 *
 * `docs/errors.md` has what `anydma explain` says. With `--check` nothing is written; the exit status is 1 when a page is not
 * as it would be written.
 */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { format, resolveConfig } from 'prettier';

const ROOT = new URL('..', import.meta.url);
const isCheck = process.argv.includes('--check');

await write('docs/errors.md', errorsPage());

/** @returns {string} Markdown */
function errorsPage() {
  const { codes } = JSON.parse(command('explain', '--json'));
  const sections = codes.map(({ code, errno, meaning, causes, next }) =>
    [`## ${code}`, `Number ${errno}: ${text(meaning)}.`, 'Causes:', list(causes), 'What to do:', list(next)].join(
      '\n\n',
    ),
  );
  const rows = codes.map(({ code, meaning }) => `| [${code}](#${code.toLowerCase()}) | ${text(meaning)} |`);
  return [
    '# Errors',
    '<!-- Made by scripts/make-pages.js from src/cli: change the sentences there. -->',
    `Every error of anydma is a \`DmaError\`. \`error.code\` is one of the codes below, \`error.reason\` says what happened,
\`error.hint\` says what to do next where that is known, \`error.device\` and \`error.range\` say where. \`anydma explain CODE\` prints the
same text as this page, and also knows the codes of Linux that are not listed here.`,
    ['| code | meaning |', '| --- | --- |', ...rows].join('\n'),
    ...sections,
  ].join('\n\n');
}

/** What the command prints. @param {string[]} args */
function command(...args) {
  const main = fileURLToPath(new URL('dist/src/cli/main.js', ROOT));
  return execFileSync(process.execPath, [main, ...args], { encoding: 'utf8' });
}

/** @param {string[]} items */
function list(items) {
  return items.map((item) => `- ${text(item)}`).join('\n');
}

/** Plain text as Markdown. @param {string} plain */
function text(plain) {
  return plain.replace(/[\\`*_<>[\]]/g, '\\$&');
}

/** @param {string} path @param {string} content */
async function write(path, content) {
  const file = new URL(path, ROOT);
  const options = { ...(await resolveConfig(file)), filepath: path };
  const wanted = await format(content, options);
  if (!isCheck) return writeFileSync(file, wanted);
  if (readFileSync(file, 'utf8') === wanted) return;
  console.error(`${path} is not as the sources say: run "npm run build && node scripts/make-pages.js"`);
  process.exitCode = 1;
}
