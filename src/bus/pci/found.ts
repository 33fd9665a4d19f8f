/** What was found when it was asked who uses a device, and what could not be found out. */
import { isDmaError, type ErrorCode } from '../../errors.js';

/** Somebody uses a device. */
export interface Use {
  /** A clause: `its disk nvme0n1 is mounted at /mnt`. */
  readonly text: string;
  /** What ends it: a command, or a clause. */
  readonly todo: string;
}

/** Something could not be asked, so that nobody knows whether there is a use of that kind. */
export interface Unasked {
  readonly code: ErrorCode;
  /** A clause. */
  readonly reason: string;
}

/** Facts, with what is missing from them. */
export interface Facts<T> {
  readonly value: T;
  readonly unknown: readonly Unasked[];
}

/** Collects facts: "can not be read" is kept apart from "is not there". */
export class Asking {
  readonly unknown: Unasked[] = [];

  /** What `call` returns; when it fails, `otherwise`, and that it is not known. */
  ask<T>(call: () => T, otherwise: T): T {
    try {
      return call();
    } catch (error) {
      if (!isDmaError(error)) throw error;
      const { code, reason } = error;
      if (!this.unknown.some((each) => each.reason === reason)) this.unknown.push({ code, reason });
      return otherwise;
    }
  }
}

/** Facts that are collected once, when they are first asked for. */
export function once<T>(collect: (asking: Asking) => T): () => Facts<T> {
  let facts: Facts<T> | undefined;
  return () => {
    if (facts === undefined) {
      const asking = new Asking();
      const value = collect(asking);
      facts = { value, unknown: asking.unknown };
    }
    return facts;
  };
}
