/** Storms of calls while something is short: each succeeds or says what is short, loses nothing, and works again afterwards. */
import assert from 'node:assert/strict';
import { isDmaError, type ErrorCode } from '../../src/errors.js';

/** The calls, and what is short. */
export interface Shortage<Name extends string> {
  readonly calls: Readonly<Record<Name, () => unknown>>;
  /** Which one is next. */
  readonly pick: () => Name;
  /** What a call that is refused may say. */
  readonly codes: readonly ErrorCode[];
  /** Makes it short. The result ends that. */
  readonly begin: () => () => void;
  /** Makes the call again once nothing is short any more: it has to succeed. */
  readonly again: (call: () => unknown, name: Name) => Promise<void>;
}

/** Rounds of a {@link Shortage}, and what happened in them: see `Storm`. */
export function shortageRounds<Name extends string>(
  shortage: Shortage<Name>,
): { round: () => Promise<void>; seen: Readonly<Record<string, number>> } {
  const { calls, pick, codes, begin, again } = shortage;
  const seen: Record<string, number> = { done: 0, refused: 0 };
  for (const name of Object.keys(calls)) seen[name] = 0;
  return {
    seen,
    async round() {
      const name = pick();
      const end = begin();
      try {
        await calls[name]();
        seen.done++;
      } catch (error) {
        const text = error instanceof Error ? error.stack : String(error);
        assert.ok(isDmaError(error), `${name}: ${text}`);
        assert.ok(codes.includes(error.code), `${name}: ${text}`);
        seen.refused++;
      } finally {
        end();
      }
      try {
        await again(calls[name], name);
      } catch (cause) {
        throw new Error(`${name} does not work any more`, { cause });
      }
      seen[name]++;
    },
  };
}
