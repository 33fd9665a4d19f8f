/** Answers about the uses of a device, and questions that could not be answered. */
import { isDmaError, type ErrorCode } from '../../errors.js';

/** One use of a device. */
export interface Use {
  /** A clause: `its disk nvme0n1 is mounted at /mnt`. */
  readonly text: string;
  /** What ends it: a command or a clause. */
  readonly todo: string;
}

/** A question that could not be answered: it is not known whether there is a use of that kind. */
export interface Unasked {
  readonly code: ErrorCode;
  /** A clause. */
  readonly reason: string;
}

/** Facts, and the questions that could not be answered. */
export interface Facts<T> {
  readonly value: T;
  readonly unknown: readonly Unasked[];
}

/** Collects facts. It distinguishes "can not be read" from "does not exist". */
export class Asking {
  readonly unknown: Unasked[] = [];

  /** The result of `call`. If it fails: `otherwise`, and the error is noted as an open question. */
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

/** Facts that are collected once, on first use. */
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
