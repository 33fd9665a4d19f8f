/** `anydma completion`: a script that lets a shell complete commands, options and values. */
import { Argument, type Command } from 'commander';
import { ERRNO } from '../../errors.js';
import { paragraphs, type CommandSpec } from '../shared/command.js';
import { bashCompletion } from './bash.js';
import { fishCompletion } from './fish.js';
import { commandTree, type CommandNode, type ValueSources } from './tree.js';
import { zshCompletion } from './zsh.js';

const SHELLS = { bash: bashCompletion, zsh: zshCompletion, fish: fishCompletion } as const;

/** Where the values of options and arguments come from, by their names in the help. */
export const VALUE_SOURCES: ValueSources = { path: 'file', device: 'pci', code: Object.keys(ERRNO) };

/** @param program the whole program: the script contains its commands as they are when this command runs */
export function completion(program: Command): CommandSpec<object> {
  return {
    name: 'completion',
    summary: 'print a script that completes commands and options in a shell',
    description: paragraphs(
      `Prints a script for a shell, which then completes commands, options, and values where they are known: modes, error
      codes, files, addresses of PCI devices.`,
      `The script is made of the commands of this version. Load it again after an update.`,
    ),
    options: (command) =>
      command.addArgument(new Argument('<shell>', 'the shell that will read it').choices(Object.keys(SHELLS))),
    examples: [
      [
        'anydma completion bash > ~/.local/share/bash-completion/completions/anydma',
        'for bash, from the next shell on',
      ],
      ['anydma completion zsh > ~/.zfunc/_anydma', 'for zsh, in a folder of $fpath'],
      ['anydma completion fish > ~/.config/fish/completions/anydma.fish', 'for fish'],
      ['source <(anydma completion bash)', 'for this shell only'],
    ],
    async run(_options, { output, args }) {
      const [shell] = args;
      const make: (root: CommandNode) => string = SHELLS[shell as keyof typeof SHELLS];
      const script = make(commandTree(program, VALUE_SOURCES));
      output.document({ ok: true, shell, script });
      output.text(script.trimEnd());
    },
  };
}
