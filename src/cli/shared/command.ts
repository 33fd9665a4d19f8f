/** What all commands share: how they are declared, how they end, and how they handle signals. */
import type { Command } from 'commander';
import { CommanderError } from 'commander';
import { DmaError } from '../../errors.js';
import { failureDocument, Output, type Streams } from './output.js';

/** Exit statuses; those of signals are 128 and the signal's number. */
export const STATUS = { OK: 0, FAILED: 1, USAGE: 2 } as const;

/** Numbers of the signals that end a command (signal(7)), equal on every system that has them. */
const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/** How long a command may clean up after a signal, in milliseconds. Then the process exits. */
const GRACE = 3000;

/** What a command needs to run. */
export interface CommandContext {
  readonly output: Output;
  /** Aborted by SIGINT and similar signals; the reason is a DmaError (ECANCELED). */
  readonly signal: AbortSignal;
  /** Positional arguments. */
  readonly args: readonly string[];
  /** Ends the command with a usage error. */
  usage(message: string): never;
}

/** The program while it runs one of its commands. */
export interface Run {
  readonly streams: Streams;
  /** The exit status of the command, after it has run. */
  status: number;
}

/** A command. @typeParam O its options, as commander collects them */
export interface CommandSpec<O extends object> {
  /** Its name and arguments, in commander's notation. */
  readonly name: string;
  /** One line for the list of commands. */
  readonly summary: string;
  /** The description in its own help: {@link paragraphs} of whole sentences. */
  readonly description: string;
  /** Adds its options. `--json` is added to every command. */
  readonly options: (command: Command) => Command;
  /** Command lines, and what each does. */
  readonly examples: readonly (readonly [line: string, what: string])[];
  /** Runs the command. If it throws, the error is printed and the exit status is 1. */
  readonly run: (options: O, context: CommandContext) => Promise<void>;
}

/** Text of a help page; commander wraps it to the width of the terminal. */
export function paragraphs(...texts: readonly string[]): string {
  return texts.map((text) => text.replace(/\s+/g, ' ')).join('\n\n');
}

/** Adds a command to the program. */
export function addCommand<O extends object>(program: Command, spec: CommandSpec<O>, run: Run): void {
  const command = program.command(spec.name);
  spec
    .options(command.summary(spec.summary).description(spec.description))
    .option('--json', 'print one JSON document on standard output, and nothing else there')
    .showHelpAfterError(`"${fullName(command)} --help" shows how it is used.`)
    .addHelpText('after', () => examplesText(spec.examples))
    .action(async () => {
      const { json = false, ...options } = command.opts<O & { json?: boolean }>();
      const output = new Output(json, run.streams, schemaOf(command));
      run.status = await execute(command, output, (context) => spec.run(options as O, context));
    });
}

/** `anydma rdma serve` */
function fullName(command: Command): string {
  return command.parent === null ? command.name() : `${fullName(command.parent)} ${command.name()}`;
}

/**
 * `rdma-serve/1`: the document of docs/json.schema.json that the command prints. A change that could break a reader
 * gets a new number.
 */
function schemaOf(command: Command): string {
  const [, ...names] = fullName(command).split(' ');
  return `${names.join('-')}/1`;
}

/** Calls `run`, reports its failure, and sets the exit status. */
async function execute(
  command: Command,
  output: Output,
  run: (context: CommandContext) => Promise<void>,
): Promise<number> {
  const interruption = new AbortController();
  let status: number = STATUS.OK;
  const onSignal = (name: keyof typeof SIGNALS): void => {
    const again = interruption.signal.aborted;
    status = 128 + SIGNALS[name];
    if (again) process.exit(status);
    const reason = `interrupted by ${name}`;
    interruption.abort(new DmaError({ code: 'ECANCELED', operation: command.name(), reason }));
    setTimeout(() => {
      output.complain(interruption.signal.reason);
      process.exit(status);
    }, GRACE).unref();
  };
  const names = Object.keys(SIGNALS) as (keyof typeof SIGNALS)[];
  for (const name of names) process.on(name, onSignal);
  try {
    const usage = (message: string): never => command.error(`error: ${message}`);
    await run({ output, signal: interruption.signal, args: command.args, usage });
    if (status !== STATUS.OK) return status;
    return output.failed ? STATUS.FAILED : STATUS.OK;
  } catch (thrown) {
    if (thrown instanceof CommanderError) throw thrown;
    const error: unknown = interruption.signal.aborted ? interruption.signal.reason : rootOf(thrown);
    output.complain(error);
    output.document(failureDocument(error));
    return status === STATUS.OK ? STATUS.FAILED : status;
  } finally {
    for (const name of names) process.off(name, onSignal);
  }
}

/** If cleaning up failed as well, the first failure is reported. */
function rootOf(error: unknown): unknown {
  let root = error;
  while (root instanceof Error && root.name === 'SuppressedError' && 'suppressed' in root) root = root.suppressed;
  return root;
}

function examplesText(examples: readonly (readonly [line: string, what: string])[]): string {
  const lines = examples.flatMap(([line, what]) => [`  $ ${line}`, `      ${what}`]);
  return ['', 'Examples:', ...lines].join('\n');
}
