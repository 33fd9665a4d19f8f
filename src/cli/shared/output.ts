/** The output of a command: tables and text for people, or one JSON document for programs; never both. */
import { SingleBar } from 'cli-progress';
import Table from 'cli-table3';
import type { DescriptionPart, TableCell, TableColumn } from '../../bus/description.js';
import { DmaError, errorDocument, isDmaError } from '../../errors.js';
import { isError } from '../../realms.js';
import { formatSize } from '../../units.js';

/** Work shorter than this shows no progress bar, in milliseconds. */
const PATIENCE = 300;

/** The streams that a command writes to; a process has them. */
export interface Streams {
  readonly stdout: Stream;
  readonly stderr: Stream;
}

type Stream = NodeJS.WritableStream & { readonly isTTY?: boolean; readonly columns?: number };

/** Shows the progress of long work. Disposing it removes the bar. */
export interface Progress extends Disposable {
  /** @param done bytes so far */
  update(done: number): void;
}

/** A line that replaces itself. Disposing it takes it away. */
export interface LiveLine extends Disposable {
  show(text: string): void;
}

/** Lines that replace themselves. Disposing it takes them away. */
export interface LiveLines extends Disposable {
  show(lines: readonly string[]): void;
}

/** Writes the output of a command. With `json`, text and tables are dropped, and documents go to standard output. */
export class Output {
  /** Reasons of interruptions that were reported. */
  readonly #told = new Set<string>();
  readonly json: boolean;
  /** Whether an error was reported. */
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
    if (!this.json) for (const line of this.tableLines(columns, rows, (head) => this.strong(head))) this.text(line);
  }

  /** The lines of a table. @param heading what becomes of heads: lines that replace themselves are cut, and take plain ones */
  tableLines(
    columns: readonly TableColumn[],
    rows: readonly (readonly TableCell[])[],
    heading = (head: string): string => head,
  ): string[] {
    const table = new Table({
      head: columns.map(({ head }) => heading(head)),
      colAligns: columns.map(({ align = 'left' }) => align),
      style: { head: [], border: [], 'padding-left': 0, 'padding-right': 0 },
      chars: NO_LINES,
    });
    for (const row of rows)
      table.push(row.map((cell) => (typeof cell === 'string' ? cell : this[cell.tone](cell.text))));
    return table
      .toString()
      .split('\n')
      .map((line) => line.trimEnd());
  }

  /** Lines and tables for people. */
  show(parts: readonly DescriptionPart[]): void {
    for (const part of parts) {
      if (typeof part === 'string') this.text(part);
      else this.table(part.columns, part.rows);
    }
  }

  /** Writes the only document for programs. */
  document(value: object): void {
    if (this.json) this.#streams.stdout.write(`${JSON.stringify({ schema: this.#schema, ...value }, undefined, 2)}\n`);
  }

  /**
   * Writes a document on one line, for a command that continues to run: its reader can read up to the end of the line.
   */
  line(value: object): void {
    if (this.json) this.#streams.stdout.write(`${JSON.stringify({ schema: this.#schema, ...value })}\n`);
  }

  /** A remark for people that is not part of the result; on standard error, with or without `json`. */
  note(line: string): void {
    this.#streams.stderr.write(`anydma: ${line}\n`);
  }

  /** Reports an error and its hint on standard error. The command will exit with status 1. */
  complain(error: unknown): void {
    this.failed = true;
    // An interruption ends several operations, and is reported once.
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
    // The user interrupted it, so a hint is not needed.
    if (error.code === 'ECANCELED') return;
    this.#streams.stderr.write(
      `hint: ${error.hint ?? `"anydma explain ${error.code}" tells what that usually means`}\n`,
    );
  }

  /** A progress bar on standard error, if that is a terminal and the work takes long. @param total bytes */
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

  /** A line on standard error that replaces itself, when that is a terminal. */
  live(): LiveLine {
    const { stderr } = this.#streams;
    if (stderr.isTTY !== true) return { show: () => undefined, [Symbol.dispose]: () => undefined };
    let shown = 0;
    const put = (text: string): void => {
      // A line that is wrapped could not be replaced.
      const line = text.slice(0, Math.max(0, (stderr.columns ?? Infinity) - 1));
      stderr.write(`\r${line.padEnd(shown)}`);
      shown = line.length;
    };
    return {
      show: put,
      [Symbol.dispose]: () => {
        if (shown === 0) return;
        put('');
        stderr.write('\r');
      },
    };
  }

  /** Lines on standard error that replace themselves, when that is a terminal. */
  liveLines(): LiveLines {
    const { stderr } = this.#streams;
    if (stderr.isTTY !== true) return { show: () => undefined, [Symbol.dispose]: () => undefined };
    let shown = 0;
    // To the first line that was shown, and nothing below it (ECMA-48: CPL, ED).
    const clear = (): string => (shown === 0 ? '' : `\x1b[${shown}F\x1b[J`);
    return {
      show: (lines) => {
        const width = 'columns' in stderr && typeof stderr.columns === 'number' ? stderr.columns : 80;
        stderr.write(clear() + lines.map((line) => `${line.slice(0, width - 1)}\n`).join(''));
        shown = lines.length;
      },
      [Symbol.dispose]: () => {
        stderr.write(clear());
        shown = 0;
      },
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

/** The JSON document of a failed command. */
export function failureDocument(error: unknown): object {
  return { ok: false, error: errorDocument(isDmaError(error) ? error : internal(error)) };
}

function internal(error: unknown): DmaError {
  const reason = isError(error) ? error.message : String(error);
  return new DmaError({ code: 'EIO', operation: 'anydma', reason: `internal error: ${reason}`, cause: error });
}

/** Columns are separated by two spaces. */
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
