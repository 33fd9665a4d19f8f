/** Shell-style patterns, as users write them for devices and the kernel for modules. */

/** What matches a pattern of `*`, `?` and `[...]`, all of a text. */
export function glob(pattern: string): RegExp {
  const parts = pattern.match(/\[!?[^\]]+\]|[^]/g) ?? [];
  return new RegExp(`^${parts.map(source).join('')}$`, 's');
}

function source(part: string): string {
  if (part === '*') return '.*';
  if (part === '?') return '.';
  if (part.length === 1) return escaped(part);
  const set = part.slice(1, -1).replace(/^!/, '^').replace(/[\\[]/g, '\\$&');
  try {
    new RegExp(`[${set}]`);
    return `[${set}]`;
  } catch {
    // A range that goes backwards matches only itself.
    return escaped(part);
  }
}

/** A text as a part of a regular expression that matches just that. */
export function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
