/** Shell-style patterns: users write them for devices, and the kernel for modules. */

/** A regular expression for a pattern of `*`, `?` and `[...]`. It matches the whole text. */
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
    // A range whose ends are in the wrong order matches only its own characters.
    return escaped(part);
  }
}

/** A regular expression source that matches exactly this text. */
export function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
}
