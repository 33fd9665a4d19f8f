/** What all commands share: how they are declared, how they end, and what a signal does. */
import type { Command } from 'commander';
import { CommanderError } from 'commander';
import { DmaError } from '../../errors.js';
import { failureDocument, Output, type Streams } from './output.js';

/** Exit statuses; those of signals are 128 and the signal's number. */
export const STATUS = { OK: 0, FAILED: 1, USAGE: 2 } as const;

/** Numbers of the signals that end a command, of signal(7). They are the same on every system that has them. */
const SIGNALS = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const;

/** How long a command has to clean up after a signal, in milliseconds. Then the process just ends. */
const GRACE = 3000;

/** What a command runs in. */
export interface CommandContext {
  readonly output: Output;
  /** Aborted by SIGINT and its like; the reason is a DmaError (ECANCELED). */
  readonly signal: AbortSignal;
  /** Arguments that belong to no option. */
  readonly args: readonly string[];
  /** Ends the command as wrongly used. */
  usage(message: string): never;
}

/** The program while it runs one of its commands. */
export interface Run {
  readonly streams: Streams;
  /** The exit status of the command, once it has run. */
  status: number;
}

/** A command. @typeParam O its options, as commander collects them */
export interface CommandSpec<O extends object> {
  /** Its name, with its arguments as commander writes them. */
  readonly name: string;
  /** One line, for the list of commands. */
  readonly summary: string;
  /** More, for its own help: {@link paragraphs} of whole sentences. */
  readonly description: string;
  /** Adds the options. `--json` is every command's and is added already. */
  readonly options: (command: Command) => Command;
  /** What to type, and what that does. */
  readonly examples: readonly (readonly [line: string, what: string])[];
  /** Runs the command. If it throws, the error is printed and the exit status is 1. */
  readonly run: (options: O, context: CommandContext) => Promise<void>;
}

/** Text of a help page, which commander breaks into lines as wide as the terminal. */
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

/** `rdma-serve/1`: which document of docs/json.schema.json the command prints. A change that could break a reader has a new number. */
function schemaOf(command: Command): string {
  const [, ...names] = fullName(command).split(' ');
  return `${names.join('-')}/1`;
}

/** Runs what `run` does, tells its failure, and says which exit status that makes. */
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

/** When cleaning up failed as well, the first failure is the one to tell. */
function rootOf(error: unknown): unknown {
  let root = error;
  while (root instanceof Error && root.name === 'SuppressedError' && 'suppressed' in root) root = root.suppressed;
  return root;
}

function examplesText(examples: readonly (readonly [line: string, what: string])[]): string {
  const lines = examples.flatMap(([line, what]) => [`  $ ${line}`, `      ${what}`]);
  return ['', 'Examples:', ...lines].join('\n');
}
