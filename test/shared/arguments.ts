/** What is no argument of a call, and a walk over calls with all of it. For tests. */
import { isDmaError } from '../../src/errors.js';

const throwing = (): never => {
  throw new TypeError('it throws when it is looked at');
};

/** Throws whatever is done with it. */
export const HOSTILE = new Proxy({}, { get: throwing, has: throwing, ownKeys: throwing, getPrototypeOf: throwing });
const GETTER = Object.defineProperty({}, 'va', { get: throwing, enumerable: true });

/** Wrong values, by what they are. */
export const BATTERY: readonly (readonly [kind: string, value: unknown])[] = [
  ['null', null],
  ['number', NaN],
  ['number', -1],
  ['number', 1.5],
  ['number', 2 ** 53],
  ['bigint', 1n],
  ['string', ''],
  ['string', 'x'],
  ['boolean', true],
  ['object', {}],
  ['object', Object.create(null)],
  ['array', []],
  ['symbol', Symbol('s')],
  ['function', () => undefined],
  ['hostile', HOSTILE],
  ['getter', GETTER],
];

/** A call that takes one value of the battery. */
export type Call<S> = (scene: S, value: never) => unknown;

/** A call by name, with the kinds that are right for it: values of these may be taken or refused, all others are EINVAL. */
export type Door<S> = readonly [door: string, right: readonly string[], call: Call<S>];

/** Calls every door with everything. @returns what was not as it should be: taken, not a DmaError, or of another code */
export async function knock<S>(scene: S, doors: readonly Door<S>[]): Promise<string[]> {
  const wrong = new Map<string, string[]>();
  for (const [door, right, call] of doors)
    for (const [kind, value] of BATTERY) {
      const note = (what: string): void => {
        const values = wrong.get(`${door}: ${what}`) ?? [];
        wrong.set(`${door}: ${what}`, [...values, kind === 'number' ? String(value) : kind]);
      };
      try {
        await soon(call(scene, value as never));
        if (!right.includes(kind)) note('taken');
      } catch (error) {
        if (!isDmaError(error))
          note(error instanceof Error ? (error.stack ?? '').split('\n').slice(0, 3).join(' ') : 'no error');
        else if (!right.includes(kind) && error.code !== 'EINVAL') note(`${error.code} ${error.message}`);
      }
    }
  return [...wrong].map(([what, values]) => `${what} (${values.join(', ')})`);
}

/** As `result`, which must not take long. */
async function soon(result: unknown): Promise<void> {
  if (!(result instanceof Promise)) return;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error('it does not settle')), 3000);
  });
  await Promise.race([result, late]).finally(() => clearTimeout(timer));
}
