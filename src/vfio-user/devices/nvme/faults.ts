/** Faults on purpose, so that drivers can be tested: what a device does wrong, and at which command. */
import { mustBeOneOf, mustBeWhole, optionsOf, type Shape } from '../../../check.js';
import type { Command } from './command.js';

/**
 * What goes wrong:
 *
 * - `lose`: the command never completes, unless it is aborted;
 * - `late`: it is carried out after `ms`;
 * - `fail`: it completes with `status`, and nothing was done;
 * - `unknown-id`: before it a completion comes whose identifier nobody has used;
 * - `twice`: it completes two times;
 * - `wrong-queue`: before it a completion comes that names another submission queue;
 * - `fatal`: the controller reports a fatal status (CSTS.CFS) and does nothing more;
 * - `gone`: registers read all ones and nothing happens any more, as after a removal;
 * - `hot`: the temperature becomes `kelvins`;
 * - `detach`, `attach`: namespace `nsid` goes, or comes back.
 */
export type NvmeFaultKind =
  'lose' | 'late' | 'fail' | 'unknown-id' | 'twice' | 'wrong-queue' | 'fatal' | 'gone' | 'hot' | 'detach' | 'attach';

const KINDS: readonly NvmeFaultKind[] = [
  'lose',
  'late',
  'fail',
  'unknown-id',
  'twice',
  'wrong-queue',
  'fatal',
  'gone',
  'hot',
  'detach',
  'attach',
];

/** A fault, and the commands that it is for. */
export interface NvmeFault {
  readonly do: NvmeFaultKind;
  /** Commands of the admin queue or of I/O queues? Default `io`. */
  readonly queue?: 'admin' | 'io';
  /** Only commands with this opcode. Default: all. */
  readonly opcode?: number;
  /** From which of those commands on, counted from 1. Default 1. */
  readonly nth?: number;
  /** How many of them, one after the other. Default 1. */
  readonly times?: number;
  /** Milliseconds, for `late`. Default 100. */
  readonly ms?: number;
  /** The status field of 15 bits, for `fail`. Default 6, an internal error. */
  readonly status?: number;
  /** For `hot`. Default 400. */
  readonly kelvins?: number;
  /** For `detach` and `attach`. Default 1. */
  readonly nsid?: number;
}

const FAULT: Shape<NvmeFault> = {
  do: KINDS,
  queue: ['admin', 'io'],
  opcode: 'number',
  nth: 'number',
  times: 'number',
  ms: 'number',
  status: 'number',
  kelvins: 'number',
  nsid: 'number',
};

/** A fault with all its settings. */
export interface Rule extends Required<Omit<NvmeFault, 'opcode'>> {
  readonly opcode: number | undefined;
}

/**
 * Checks a fault.
 *
 * @throws DmaError EINVAL for what it can not be
 */
export function faultRule(fault: NvmeFault, operation: string): Rule {
  const {
    queue = 'io',
    opcode,
    nth = 1,
    times = 1,
    ms = 100,
    status = 6,
    kelvins = 400,
    nsid = 1,
    ...rest
  } = optionsOf(fault, FAULT, operation);
  mustBeOneOf(rest.do, KINDS, 'do of a fault', operation);
  if (opcode !== undefined) mustBeWhole(opcode, 0, 255, 'opcode of a fault', operation);
  mustBeWhole(nth, 1, 2 ** 31, 'nth of a fault', operation);
  mustBeWhole(times, 1, 2 ** 31, 'times of a fault', operation);
  mustBeWhole(ms, 0, 2 ** 31 - 1, 'ms of a fault', operation);
  mustBeWhole(status, 1, 0x7fff, 'status of a fault', operation);
  mustBeWhole(kelvins, 0, 65535, 'kelvins of a fault', operation);
  mustBeWhole(nsid, 1, 2 ** 32 - 2, 'nsid of a fault', operation);
  return { do: rest.do, queue, opcode, nth, times, ms, status, kelvins, nsid };
}

/** Counts commands, and says which of them go wrong. They are counted for ever, through resets. */
export class Faults {
  readonly #rules: readonly Rule[];
  readonly #seen: number[];

  constructor(rules: readonly Rule[]) {
    this.#rules = rules;
    this.#seen = rules.map(() => 0);
  }

  /** The fault of a command, if it has one. */
  take(command: Command): Rule | undefined {
    let found: Rule | undefined;
    const queue = command.queue.id === 0 ? 'admin' : 'io';
    for (const [at, rule] of this.#rules.entries()) {
      if (rule.queue !== queue || (rule.opcode !== undefined && rule.opcode !== command.opcode)) continue;
      const count = ++this.#seen[at];
      if (count >= rule.nth && count < rule.nth + rule.times) found ??= rule;
    }
    return found;
  }
}
