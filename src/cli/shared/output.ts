/** What a command says: tables and text for people, or one JSON document for programs; never both. */
import { SingleBar } from 'cli-progress';
import Table from 'cli-table3';
import type { DescriptionPart, TableCell, TableColumn } from '../../bus/description.js';
import { DmaError, errorDocument, isDmaError } from '../../errors.js';
import { isError } from '../../realms.js';
import { formatSize } from '../../units.js';

/** Work that takes less than this shows no progress bar. milliseconds */
const PATIENCE = 300;

/** Where a command says it: a process is one. */
export interface Streams {
  readonly stdout: Stream;
  readonly stderr: Stream;
}

type Stream = NodeJS.WritableStream & { readonly isTTY?: boolean };

/** How far a long piece of work is. Disposing it takes the bar away. */
export interface Progress extends Disposable {
  /** @param done bytes so far */
  update(done: number): void;
}

/** Where a command says what it has to say. With `json`, text and tables go nowhere, and documents to standard output. */
export class Output {
  /** Reasons of interruptions that were told. */
  readonly #told = new Set<string>();
  readonly json: boolean;
  /** Was anything complained about? */
  failed = false;
  readonly #streams: Streams;
  readonly #colour: boolean;
  readonly #schema: string | undefined;

  /** @param schema the name and version of the documents in docs/json.schema.json, such as `map/1` */
  constructor(json: boolean, streams: Streams = process, schema?: string) {
    this.json = json;
    this.#streams = streams;
    this.#schema = schema;
    const { NO_COLOR, TERM } = process.env;
    this.#colour = streams.stdout.isTTY === true && (NO_COLOR === undefined || NO_COLOR === '') && TERM !== 'dumb';
  }

  /** A line for people. */
  text(line = ''): void {
    if (!this.json) this.#streams.stdout.write(`${line}\n`);
  }

  /** A table for people. */
  table(columns: readonly TableColumn[], rows: readonly (readonly TableCell[])[]): void {
    if (this.json) return;
    const table = new Table({
      head: columns.map(({ head }) => this.strong(head)),
      colAligns: columns.map(({ align = 'left' }) => align),
      style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
      chars: NO_LINES,
    });
    for (const row of rows)
      table.push(row.map((cell) => (typeof cell === 'string' ? cell : this[cell.tone](cell.text))));
    for (const line of table.toString().split('\n')) this.text(line.trimEnd());
  }

  /** Lines and tables for people. */
  show(parts: readonly DescriptionPart[]): void {
    for (const part of parts) {
      if (typeof part === 'string') this.text(part);
      else this.table(part.columns, part.rows);
    }
  }

  /** The document for programs, and the only one. */
  document(value: object): void {
    if (this.json) this.#streams.stdout.write(`${JSON.stringify({ schema: this.#schema, ...value }, undefined, 2)}\n`);
  }

  /** A document on one line, for a command that goes on running: who waits for it can read up to the line's end. */
  line(value: object): void {
    if (this.json) this.#streams.stdout.write(`${JSON.stringify({ schema: this.#schema, ...value })}\n`);
  }

  /** A remark for people that does not belong to the result; on standard error, with or without `json`. */
  note(line: string): void {
    this.#streams.stderr.write(`anydma: ${line}\n`);
  }

  /** Says what failed, and what to do about it, on standard error. The command will end with status 1. */
  complain(error: unknown): void {
    this.failed = true;
    // An interruption is the outcome of all that it ended: said once.
    if (isDmaError(error, 'ECANCELED')) {
      if (this.#told.has(error.reason)) return;
      this.#told.add(error.reason);
    }
    if (!isDmaError(error)) {
      const stack = isError(error) ? (error.stack ?? error.message) : String(error);
      this.note(`internal error, please report it: ${stack}`);
      return;
    }
    this.note(error.with({ hint: undefined }).message);
    // Who interrupted it knows why.
    if (error.code === 'ECANCELED') return;
    this.#streams.stderr.write(
      `hint: ${error.hint ?? `"anydma explain ${error.code}" tells what that usually means`}\n`,
    );
  }

  /** A bar on standard error, when that is a terminal and the work takes long. @param total bytes */
  progress(what: string, total: number): Progress {
    if (!this.#streams.stderr.isTTY) return { update: () => undefined, [Symbol.dispose]: () => undefined };
    const started = performance.now();
    let bar: SingleBar | undefined;
    return {
      update: (done) => {
        if (bar === undefined) {
          if (performance.now() - started < PATIENCE) return;
          bar = new SingleBar({
            format: `${what} [{bar}] {percentage}% of ${formatSize(total)}, {eta_formatted} left`,
            barCompleteChar: '#',
            barIncompleteChar: '.',
            stream: this.#streams.stderr,
            hideCursor: true,
            clearOnComplete: true,
          });
          bar.start(total, done);
        }
        bar.update(done);
      },
      [Symbol.dispose]: () => bar?.stop(),
    };
  }

  strong(text: string): string {
    return this.#paint('1', text);
  }

  good(text: string): string {
    return this.#paint('32', text);
  }

  bad(text: string): string {
    return this.#paint('31', text);
  }

  #paint(code: string, text: string): string {
    return this.#colour ? `\x1b[${code}m${text}\x1b[0m` : text;
  }
}

/** The document that a failed command gives to programs. */
export function failureDocument(error: unknown): object {
  return { ok: false, error: errorDocument(isDmaError(error) ? error : internal(error)) };
}

function internal(error: unknown): DmaError {
  const reason = isError(error) ? error.message : String(error);
  return new DmaError({ code: 'EIO', operation: 'anydma', reason: `internal error: ${reason}`, cause: error });
}

/** Columns are told apart by two spaces. */
const NO_LINES = {
  top: '',
  'top-mid': '',
  'top-left': '',
  'top-right': '',
  bottom: '',
  'bottom-mid': '',
  'bottom-left': '',
  'bottom-right': '',
  left: '',
  'left-mid': '',
  mid: '',
  'mid-mid': '',
  right: '',
  'right-mid': '',
  middle: '  ',
};
