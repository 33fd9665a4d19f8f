/**
 * Writes the pages that are made of the command: `node scripts/make-pages.js [--check]`. Build first.
 *
 * `docs/errors.md` has what `anydma explain` says, `man/anydma.1` what `--help` says of each command. With `--check` nothing is
 * written; the exit status is 1 when a page is not as it would be written.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { Writable } from 'node:stream';
import { format, resolveConfig } from 'prettier';
import { runProgram } from '../dist/src/cli/program.js';

const ROOT = new URL('..', import.meta.url);
const isCheck = process.argv.includes('--check');

await write('docs/errors.md', await formatted('docs/errors.md', await errorsPage()));
await write('man/anydma.1', await manPage());

/** @returns {Promise<string>} Markdown */
async function errorsPage() {
  const { codes } = JSON.parse(await command('explain', '--json'));
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

/** What the command prints, run in this process. @param {string[]} args */
async function command(...args) {
  let text = '';
  const stdout = new Writable({
    decodeStrings: false,
    write: (chunk, _encoding, done) => done((text += chunk) && null),
  });
  const status = await runProgram(args, { stdout, stderr: process.stderr });
  if (status !== 0) throw new Error(`anydma ${args.join(' ')}: exit status ${status}`);
  return text;
}

/** @param {string[]} items */
function list(items) {
  return items.map((item) => `- ${text(item)}`).join('\n');
}

/** Plain text as Markdown. @param {string} plain */
function text(plain) {
  return plain.replace(/[\\`*_<>[\]]/g, '\\$&');
}

/** @returns {Promise<string>} roff, with the macros of man(7) */
async function manPage() {
  const { paragraphs, sections, after } = await helpOf();
  const version = (await command('--version')).trim();
  const text = after.join('\n').replace(/Exit status: .*/, '');
  const [, status = ''] = /Exit status: (.*)/.exec(after.join('\n')) ?? [];
  const commands = (sections.get('Commands') ?? []).filter(({ term }) => !term.startsWith('help'));
  return [
    `.\\" Made by scripts/make-pages.js from the help of the command.`,
    `.TH ANYDMA 1 "" "anydma ${version}" "User Commands"`,
    '.SH NAME',
    `anydma \\- ${roff(
      paragraphs
        .join(' ')
        .replace(/\.$/, '')
        .replace(/^./, (first) => first.toLowerCase()),
    )}`,
    '.SH SYNOPSIS',
    '.B anydma',
    '.I command',
    '.RI [ options ]',
    '.SH DESCRIPTION',
    ...paragraphsOf(text.trim().split(/\n+/)),
    '.SH COMMANDS',
    ...(await manSections(commands.map(({ term }) => [term.split(' ')[0]]))),
    '.SH EXIT STATUS',
    roff(status),
    '.SH SEE ALSO',
    'The folder docs of the package.',
    '',
  ].join('\n');
}

/** Commands, and those below them. @param {string[][]} all their names @returns {Promise<string[]>} */
async function manSections(all) {
  const lines = [];
  for (const names of all) lines.push(...(await manSection(names)));
  return lines;
}

/** @param {string[]} names @returns {Promise<string[]>} */
async function manSection(names) {
  const { usage, paragraphs, sections, examples } = await helpOf(...names);
  const commands = (sections.get('Commands') ?? [])
    .map(({ term }) => term.split(' ')[0])
    .filter((name) => name !== 'help');
  const items = ['Arguments', 'Options'].flatMap((title) => sections.get(title) ?? []);
  return [
    `.SS ${roff(usage)}`,
    ...paragraphsOf(paragraphs),
    ...items.flatMap(itemLines),
    ...(examples.length === 0 ? [] : ['.PP', 'Examples:', ...examples.flatMap(itemLines)]),
    ...(await manSections(commands.map((name) => [...names, name]))),
  ];
}

/** @param {string[]} paragraphs the first one follows a heading */
function paragraphsOf(paragraphs) {
  return paragraphs.flatMap((paragraph, n) => (n === 0 ? [roff(paragraph)] : ['.PP', roff(paragraph)]));
}

/** @param {{ term: string, about: string }} item */
function itemLines({ term, about }) {
  return ['.TP', `.B ${roff(term)}`, roff(about)];
}

/**
 * The parts of a help text: the usage, paragraphs, sections of terms with what they are about, examples, and what comes after all
 * that.
 *
 * @param {string[]} names of the command
 */
async function helpOf(...names) {
  const parts = (await command(...names, '--help'))
    .replace(/^(?=Examples:$)/m, '\n')
    .trim()
    .split(/\n{2,}/);
  const usage = joined(parts.shift() ?? '').replace(/^Usage: /, '');
  const sections = new Map();
  const paragraphs = [];
  const after = [];
  let examples = [];
  for (const part of parts) {
    const [, title, body] = /^([A-Z][a-z]+):\n([^]*)$/.exec(part) ?? [];
    if (title === undefined) sections.size === 0 ? paragraphs.push(joined(part)) : after.push(part);
    else if (title === 'Examples')
      examples = [...body.matchAll(/^ {2}\$ (.*)\n {6}(.*)$/gm)].map(([, term, about]) => ({ term, about }));
    else sections.set(title, itemsOf(body));
  }
  return { usage, paragraphs, sections, examples, after };
}

/** Lines of `  term  what it is about`, which go on in lines that are indented further. @param {string} body */
function itemsOf(body) {
  return body.split(/\n(?= {2}\S)/).map((item) => {
    const [, term, about] = /^ {2}(\S(?:.*?\S)?)(?:(?: {2,}|\n)([^]*))?$/.exec(item) ?? [];
    return { term: term ?? '', about: joined(about ?? '') };
  });
}

/** @param {string} lines */
function joined(lines) {
  return lines.replace(/\s+/g, ' ').trim();
}

/** Plain text as roff. @param {string} plain */
function roff(plain) {
  return plain.replace(/\\/g, '\\e').replace(/-/g, '\\-').replace(/"/g, '\\(dq').replace(/^[.']/, '\\&$&');
}

/** @param {string} path @param {string} content */
async function formatted(path, content) {
  return format(content, { ...(await resolveConfig(new URL(path, ROOT))), filepath: path });
}

/** @param {string} path @param {string} wanted */
async function write(path, wanted) {
  const file = new URL(path, ROOT);
  mkdirSync(new URL('.', file), { recursive: true });
  if (!isCheck) return writeFileSync(file, wanted);
  if (existsSync(file) && readFileSync(file, 'utf8') === wanted) return;
  console.error(`${path} is not as the sources say: run "npm run pages"`);
  process.exitCode = 1;
}
