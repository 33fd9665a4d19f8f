/**
 * What `share()` returns: a plain object that is sent to another thread, and opened there by `attach`.
 *
 * It contains addresses, so what a message says is not believed: it carries a *seal* over all of it, made with a secret that all
 * threads of this process know and nobody else. A description that was changed, made up, or that came from another process has the
 * wrong seal.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { mustBeObject, reading } from '../../check.js';
import { DmaError, invalid } from '../../errors.js';
import type { MemoryPort } from '../../platform/ports.js';
import { isSharedArrayBuffer } from '../../realms.js';
import { show } from '../../show.js';

/** Changes when an older version of this library could not read it. */
const VERSION = 1;

/** What is shared. */
export type SharedKind = 'memory' | 'mapping' | 'device' | 'queue' | 'queue-pair' | 'copy-engine' | 'pool' | 'ring';

const KINDS: readonly unknown[] = [
  'memory',
  'mapping',
  'device',
  'queue',
  'queue-pair',
  'copy-engine',
  'pool',
  'ring',
] satisfies SharedKind[];

/** What a description says, as plain data. */
export type SharedFacts = Readonly<Record<string, unknown>>;

/**
 * Something that is shared with other threads of this process. Send it as it is, any number of times, by `postMessage` or as
 * `workerData`; it needs no place in a transfer list. `attach(shared)` opens it there.
 */
export interface Shared<T> {
  readonly kind: SharedKind;
  /** @internal */
  readonly version: number;
  /** @internal Plain numbers and texts. */
  readonly facts: SharedFacts;
  /** @internal Who holds it: see holds.ts. */
  readonly holds: SharedArrayBuffer;
  /** @internal The table of all holders. */
  readonly holders: SharedArrayBuffer;
  /** @internal What kinds need besides. */
  readonly more: readonly SharedArrayBuffer[];
  /** @internal They keep the memory in place when the worker that made it ends. See `MemoryPort.keeper`. */
  readonly keepers: readonly SharedArrayBuffer[];
  /** @internal */
  readonly seal: string;
  /** Never there. It says to TypeScript what `attach` returns. */
  readonly attached?: T;
}

/** What sealing needs of the platform. */
export type SealPort = Pick<MemoryPort, 'addressOf' | 'secret'>;

/** A description, sealed. @throws DmaError ENOTSUP where memory can not be shared */
export function sealed<T>(port: SealPort, parts: Omit<Shared<T>, 'version' | 'seal' | 'attached'>): Shared<T> {
  const unsealed = { version: VERSION, ...parts };
  return { ...unsealed, seal: sealOf(port, unsealed, 'share') };
}

/**
 * Checks a description.
 *
 * @returns a copy, which nobody else can change
 * @throws DmaError EINVAL unless `sealed` made it, in this process
 */
export function unsealed<T>(port: SealPort, shared: Shared<T>, operation: string): Shared<T> {
  mustBeObject(shared, 'what is attached', operation);
  const copy = reading(operation, 'what is attached', () => {
    const { kind, version, facts, holds, holders, more, keepers, seal } = shared;
    return { kind, version, facts: { ...facts }, holds, holders, more: listOf(more), keepers: listOf(keepers), seal };
  });
  const { kind, version, holds, holders, more, keepers, seal } = copy;
  if (!KINDS.includes(kind)) throw noDescription(operation, `its kind is ${show(kind)}`);
  if (version !== VERSION)
    throw invalid(operation, `the ${kind} was shared in version ${show(version)} of the form, and this is ${VERSION}`, {
      hint: 'use one version of anydma in all threads',
    });
  const buffers = [holds, holders, ...more, ...keepers];
  if (!buffers.every(isSharedArrayBuffer))
    throw noDescription(operation, 'its SharedArrayBuffers are missing: only threads of one process can have them');
  const [given, wanted] = [
    Buffer.from(typeof seal === 'string' ? seal : ''),
    Buffer.from(sealOf(port, copy, operation)),
  ];
  if (given.length !== wanted.length || !timingSafeEqual(given, wanted))
    throw noDescription(
      operation,
      'its seal is not that of this process: it was changed on its way, or made elsewhere',
    );
  return copy;
}

/** Addresses of the buffers are in it, too: they are the same in all threads, and no other buffer has them. */
function sealOf(port: SealPort, shared: Omit<Shared<unknown>, 'seal'>, operation: string): string {
  const secret = port.secret();
  if (secret === undefined)
    throw new DmaError({
      code: 'ENOTSUP',
      operation,
      reason: 'memory can not be shared between threads here: an ArrayBuffer belongs to its thread',
      hint: 'platform.limitation tells why system calls are not available',
    });
  const { kind, version, facts, holds, holders, more, keepers } = shared;
  const places = [holds, holders, ...more, ...keepers].map((buffer) => [port.addressOf(buffer), buffer.byteLength]);
  const counts = [more.length, keepers.length];
  const text = reading(operation, 'what is attached', () => JSON.stringify([kind, version, facts, counts, places]));
  return createHmac('sha256', secret).update(text).digest('base64url');
}

function noDescription(operation: string, why: string): DmaError {
  return invalid(operation, `this is not what share() returned in this process: ${why}`, {
    hint: 'send the result of share() as it is, to a worker thread of the same process; it can be attached there any number of times',
  });
}

/** A copy of a list; empty if it is none. */
function listOf(list: unknown): SharedArrayBuffer[] {
  return Array.isArray(list) ? [...(list as SharedArrayBuffer[])] : [];
}
