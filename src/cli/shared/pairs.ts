/** Values of options that are pairs: `FILE,blocksize=4096,readonly`. */
import { InvalidArgumentError } from 'commander';

/** What a key takes: a function of the text behind `=`, or nothing behind it. */
export type PairKinds = Readonly<Record<string, ((text: string) => unknown) | 'flag'>>;

/** Reads `key=value,key` pairs. @throws InvalidArgumentError for a key that there is not, or a value that it can not have */
export function pairsOf<T extends object>(text: string, kinds: PairKinds): Partial<T> {
  const pairs: Record<string, unknown> = {};
  for (const part of text === '' ? [] : text.split(',')) {
    const [key, ...rest] = part.split('=');
    const kind = Object.hasOwn(kinds, key) ? kinds[key] : undefined;
    if (kind === undefined)
      throw new InvalidArgumentError(`There is no ${key}; there are: ${Object.keys(kinds).join(', ')}.`);
    if ((kind === 'flag') !== (rest.length === 0))
      throw new InvalidArgumentError(kind === 'flag' ? `${key} takes no value.` : `${key} takes a value: ${key}=...`);
    pairs[key] = kind === 'flag' ? true : kind(rest.join('='));
  }
  return pairs as Partial<T>;
}
