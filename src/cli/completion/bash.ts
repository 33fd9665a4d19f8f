/** Completion for bash. It only needs bash 4: the script contains all words and starts no other program. */
import { allCommands, type CommandNode, type ValueNode } from './tree.js';

/** The script. @param root the program */
export function bashCompletion(root: CommandNode): string {
  const nodes = allCommands(root);
  const name = `_${root.name}`;
  return `# Completion of ${root.name} for bash, made by "${root.name} completion bash".
${name}() {
  # Words as they are typed: bash itself also splits them at ":" and "=".
  local line=\${COMP_LINE:0:COMP_POINT} word= path=${root.name} last option= kind= words= each
  local -a before
  read -ra before <<<"$line"
  if [[ $line != *[[:space:]] ]]; then
    word=\${before[-1]}
    unset 'before[-1]'
  fi
  for each in "\${before[@]:1}"; do
    case "$path $each" in
      ${patterns(nodes.slice(1).map(({ path }) => path))}) path="$path $each" ;;
    esac
  done
  last=\${before[-1]}
  if [[ $word == --*=* ]]; then
    last=\${word%%=*}
    word=\${word#*=}
    option="$last="
  fi
  case "$path $last" in
${nodes.flatMap(optionCases).join('\n')}
    *)
      option=
      if [[ $word == -* ]]; then
        case $path in
${nodes.map(({ path, options }) => `          ${quoted(path)}) words=${quoted(optionWords(options))} ;;`).join('\n')}
        esac
      else
        case $path in
${nodes.map((node) => `          ${quoted(node.path)}) ${argumentWords(node)} ;;`).join('\n')}
        esac
      fi
      ;;
  esac
  case $kind in
    file)
      compopt -o filenames
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      ;;
    pci) mapfile -t COMPREPLY < <(compgen -W "$(cd /sys/bus/pci/devices 2>/dev/null && echo *)" -- "$word") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word") ;;
  esac
  # bash splits words at ":" and "=", and replaces only the part after the last of them.
  if [[ $COMP_WORDBREAKS == *:* && $word == *:* ]]; then
    COMPREPLY=("\${COMPREPLY[@]#"\${word%:*}:"}")
  elif [[ -n $option && $COMP_WORDBREAKS != *=* ]]; then
    COMPREPLY=("\${COMPREPLY[@]/#/$option}")
  fi
}
complete -F ${name} ${root.name}
`;
}

function optionCases({ path, options }: CommandNode): string[] {
  return options.flatMap(({ short, long, value }) => {
    if (value === undefined) return [];
    const names = [short, long].flatMap((each) => (each === undefined ? [] : [`${path} ${each}`]));
    return [`    ${patterns(names)}) ${valueWords(value)} ;;`];
  });
}

function optionWords(options: CommandNode['options']): string {
  return options.map(({ long }) => long).join(' ');
}

function argumentWords({ commands, arguments: wanted }: CommandNode): string {
  const [first] = wanted;
  if (commands.length > 0 || first === undefined) return `words=${quoted(commands.map(({ name }) => name).join(' '))}`;
  return valueWords(first);
}

function valueWords({ kind, choices }: ValueNode): string {
  return kind === 'choices' ? `words=${quoted(choices.join(' '))}` : `kind=${kind}`;
}

function patterns(texts: readonly string[]): string {
  return texts.map(quoted).join(' | ');
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
