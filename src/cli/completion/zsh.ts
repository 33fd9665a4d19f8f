/** Completion for zsh, with `_arguments`. */
import { allCommands, type ArgumentNode, type CommandNode, type OptionNode, type ValueNode } from './tree.js';

/** The script: for a file `_anydma` in a folder of `$fpath`, or for `source`. @param root the program */
export function zshCompletion(root: CommandNode): string {
  return `#compdef ${root.name}
# Completion of ${root.name} for zsh, made by "${root.name} completion zsh".
_${root.name}_pci() {
  local -a devices=(/sys/bus/pci/devices/*(N:t))
  # Colons would begin a description.
  compadd -a devices
}
${allCommands(root).map(commandFunction).join('')}
if [[ $funcstack[1] == _${root.name} ]]; then
  _${root.name} "$@"
else
  compdef _${root.name} ${root.name}
fi
`;
}

function commandFunction(node: CommandNode): string {
  const options = node.options.map(optionSpec);
  const specs =
    node.commands.length > 0
      ? [...options, "'1: :->command'", "'*:: :->arguments'"]
      : [...options, ...node.arguments.map(argumentSpec)];
  const call = `_arguments -s ${['-C', ...specs].map((spec) => `\\\n    ${spec}`).join(' ')}`;
  const states = `
  case $state in
    command)
      local -a commands=(
${node.commands.map(({ name, summary }) => `        ${quoted(`${name}:${summary}`)}`).join('\n')}
      )
      _describe command commands
      ;;
    arguments)
      case $line[1] in
${node.commands.map((each) => `        ${each.name}) ${functionName(each)} ;;`).join('\n')}
      esac
      ;;
  esac`;
  return `${functionName(node)}() {
  local state line
  local -A opt_args
  ${call}${node.commands.length > 0 ? states : ''}
}
`;
}

function functionName({ path }: CommandNode): string {
  return `_${path.replaceAll(' ', '_')}`;
}

/** `'(-n --node)'{-n,--node}'[which NUMA node]:n: '` */
function optionSpec({ short, long, description, value }: OptionNode): string {
  const names = short === undefined ? [long] : [short, long];
  const rest = `[${description.replace(/[[\]\\]/g, '\\$&')}]${value === undefined ? '' : `:${value.name}:${action(value)}`}`;
  const which = names.length === 1 ? quoted(`${long}${value === undefined ? '' : '='}${rest}`) : '';
  if (which !== '') return which;
  const forms = names.map((name) => (value === undefined ? name : name.startsWith('--') ? `${name}=` : `${name}+`));
  return `${quoted(`(${names.join(' ')})`)}{${forms.join(',')}}${quoted(rest)}`;
}

function argumentSpec(argument: ArgumentNode, index: number): string {
  return quoted(`${argument.variadic ? '*' : index + 1}:${argument.name}:${action(argument)}`);
}

function action({ kind, choices }: ValueNode): string {
  switch (kind) {
    case 'choices':
      return `(${choices.join(' ')})`;
    case 'file':
      return '_files';
    case 'pci':
      return '_anydma_pci';
    case 'none':
      return ' ';
  }
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
