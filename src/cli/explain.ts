/** `anydma explain`: what an error code means in this library, and what to do next. Needs no hardware. */
import { ERRNO, type ErrorCode } from '../errors.js';
import { paragraphs, type CommandSpec } from './shared/command.js';
import { ERROR_CODES, guideTo } from './error-codes.js';
import type { Output } from './shared/output.js';

const ALL = Object.keys(ERRNO) as ErrorCode[];
/** The codes in the list. */
const CODES = ALL.filter((code) => Object.hasOwn(ERROR_CODES, code));

export const explain: CommandSpec<object> = {
  name: 'explain [code...]',
  summary: 'say what an error code means here, what causes it, and what to do',
  description: paragraphs(
    `Explains the error codes of anydma. A code is given by name or by number, as in messages and logs: EEXIST,
    17, -17. Without one, all are listed.`,
    `About a device address, ask the program that mapped it: device.explain(iova).`,
  ),
  options: (command) => command.allowUnknownOption(),
  examples: [
    ['anydma explain EEXIST', 'why memory could not be mapped'],
    ['anydma explain -- -14', 'what "error -14" of a log means'],
  ],
  async run(_options, { output, args, usage }) {
    const wanted = args.map((text) => codeOf(text) ?? usage(`"${text}" is not an error code of Linux`));
    const codes = wanted.length === 0 ? CODES : wanted;
    const list = codes.map((code) => ({ code, errno: ERRNO[code], ...guideTo(code) }));
    output.document({ ok: true, codes: list });
    if (wanted.length === 0) printList(output);
    else for (const [n, code] of codes.entries()) printCode(output, code, n === 0);
  },
};

/** The code for `EEXIST`, `eexist`, `17` or `-17`. */
function codeOf(text: string): ErrorCode | undefined {
  const name = text.toUpperCase();
  if (name === 'EOPNOTSUPP') return 'ENOTSUP';
  if (name === 'EWOULDBLOCK') return 'EAGAIN';
  return ALL.find((code) => code === name || (/^-?\d+$/.test(text) && ERRNO[code] === Math.abs(Number(text))));
}

function printList(output: Output): void {
  output.table(
    [{ head: 'CODE' }, { head: 'NUMBER', align: 'right' }, { head: 'MEANING' }],
    CODES.map((code) => [code, String(ERRNO[code]), guideTo(code).meaning]),
  );
}

function printCode(output: Output, code: ErrorCode, first: boolean): void {
  const { meaning, causes, next } = guideTo(code);
  if (!first) output.text();
  output.text(`${output.strong(code)} (${ERRNO[code]}): ${meaning}`);
  output.text('causes:');
  for (const cause of causes) output.text(`  - ${cause}`);
  output.text('what to do:');
  for (const step of next) output.text(`  - ${step}`);
}
