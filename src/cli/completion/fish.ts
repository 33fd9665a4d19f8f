/** Completion for fish. */
import { allCommands, type CommandNode, type ValueNode } from './tree.js';

/** The script. @param root the program */
export function fishCompletion(root: CommandNode): string {
  const nodes = allCommands(root);
  const path = `__${root.name}_path`;
  return `# Completion of ${root.name} for fish, made by "${root.name} completion fish".
function ${path} --description 'which command is being typed'
  set -l path ${root.name}
  for word in (commandline -opc)[2..]
    switch "$path $word"
      case ${nodes
        .slice(1)
        .map((node) => quoted(node.path))
        .join(' ')}
        set path "$path $word"
    end
  end
  echo $path
end
complete -c ${root.name} -f
${nodes.flatMap((node) => linesOf(root.name, path, node)).join('\n')}
`;
}

function linesOf(program: string, pathFunction: string, node: CommandNode): string[] {
  const complete = `complete -c ${program} -n ${quoted(`test (${pathFunction}) = "${node.path}"`)}`;
  const commands = node.commands.map(({ name, summary }) => `${complete} -a ${quoted(name)} -d ${quoted(summary)}`);
  const wanted =
    node.commands.length > 0 ? [] : node.arguments.map((argument) => `${complete} ${valueFlags(argument)}`);
  const options = node.options.map(({ short, long, description, value }) =>
    [
      complete,
      ...(short === undefined ? [] : [`-s ${short.slice(1)}`]),
      `-l ${long.slice(2)}`,
      ...(value === undefined ? [] : [value.kind === 'file' ? '-r -F' : `-x ${valueFlags(value)}`]),
      `-d ${quoted(description)}`,
    ].join(' '),
  );
  return [...commands, ...wanted, ...options];
}

function valueFlags({ kind, choices }: ValueNode): string {
  switch (kind) {
    case 'choices':
      return `-a ${quoted(choices.join(' '))}`;
    case 'file':
      return '-F';
    case 'pci':
      return `-a '(string replace -r ".*/" "" /sys/bus/pci/devices/*)'`;
    case 'none':
      return '';
  }
}

function quoted(text: string): string {
  return `'${text.replace(/[\\']/g, '\\$&')}'`;
}
