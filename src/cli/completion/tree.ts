/** The commands of the program as data, for completion scripts and the man page. */
import type { Argument, Command, Option } from 'commander';

/** A command with its options, arguments and commands. */
export interface CommandNode {
  /** `anydma rdma serve` */
  readonly path: string;
  readonly name: string;
  readonly summary: string;
  readonly options: readonly OptionNode[];
  readonly arguments: readonly ArgumentNode[];
  readonly commands: readonly CommandNode[];
}

/** An option. */
export interface OptionNode {
  /** `-n`, if any. */
  readonly short: string | undefined;
  /** `--node` */
  readonly long: string;
  readonly description: string;
  /** Its value; `undefined` for a switch. */
  readonly value: ValueNode | undefined;
}

/** A positional argument. */
export interface ArgumentNode extends ValueNode {
  readonly variadic: boolean;
}

/** The value of an option or argument. */
export interface ValueNode {
  /** Its name in the help: `size` of `--size <size>`. */
  readonly name: string;
  /** All values, if they are known. */
  readonly choices: readonly string[];
  readonly kind: ValueKind;
}

/** Where a shell finds values. `pci`: addresses of PCI devices. */
export type ValueKind = 'choices' | 'file' | 'pci' | 'none';

/** Where values come from that commander does not know, by their name in the help. */
export type ValueSources = Readonly<Record<string, ValueKind | readonly string[]>>;

/** Reads a command and all commands below it, in the order of the help. */
export function commandTree(command: Command, sources: ValueSources): CommandNode {
  const help = command.createHelp();
  return {
    path: pathOf(command),
    name: command.name(),
    summary: help.subcommandDescription(command),
    options: help.visibleOptions(command).map((option) => optionNode(option, sources)),
    arguments: command.registeredArguments.map((argument) => argumentNode(argument, sources)),
    commands: help.visibleCommands(command).map((each) => commandTree(each, sources)),
  };
}

/** A command and all commands below it. */
export function allCommands(node: CommandNode): CommandNode[] {
  return [node, ...node.commands.flatMap(allCommands)];
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;
}

function optionNode(option: Option, sources: ValueSources): OptionNode {
  const [, name] = /[<[]([a-z]+)(?:\.\.\.)?[>\]]/.exec(option.flags) ?? [];
  return {
    short: option.short,
    long: option.long ?? '',
    description: option.description,
    value: name === undefined ? undefined : valueNode(name, option.argChoices, sources),
  };
}

function argumentNode(argument: Argument, sources: ValueSources): ArgumentNode {
  return { ...valueNode(argument.name(), argument.argChoices, sources), variadic: argument.variadic };
}

function valueNode(name: string, choices: readonly string[] | undefined, sources: ValueSources): ValueNode {
  if (choices !== undefined) return { name, choices, kind: 'choices' };
  const source = Object.hasOwn(sources, name) ? sources[name] : 'none';
  return typeof source === 'string' ? { name, choices: [], kind: source } : { name, choices: source, kind: 'choices' };
}
