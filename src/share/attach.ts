/** Opens what another thread shares. */
import { AttachedDevice, deviceFacts } from '../bus/attached-device.js';
import { AttachedMapping, mappingFacts, nameOf } from '../dma/attached-mapping.js';
import { AttachedMemory, memoryFacts } from '../memory/attached-memory.js';
import { AttachedCopyEngine, copyEngineFacts, engineName } from '../drivers/attached-copy-engine.js';
import { AttachedQueuePair, pairName, queuePairFacts } from '../rdma/attached-queue-pair.js';
import { nvmeQueueFacts, NvmeQueueOfThread, queueName } from '../drivers/nvme/attached-queue.js';
import { mustHave, reading } from '../check.js';
import { invalid } from '../errors.js';
import { Pool, type PoolDescription } from '../memory/pool/pool.js';
import { Ring, type PoolOpening, type RingDescription } from '../memory/pool/ring.js';
import { Hold } from '../memory/shared/hold.js';
import { unsealed, type Shared } from '../memory/shared/shared.js';
import { captureOrigin, placeOf } from '../origin.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';

type PoolFacts = Omit<PoolDescription, 'stack' | 'threads' | 'holders' | 'keepers' | 'sealed'>;

/** What the description of a ring says besides, and where its words are unless they are in SharedArrayBuffers. */
type RingFacts = Pick<RingDescription, 'name' | 'event' | 'roomEvent'> & {
  /** The seal of its pool. */
  readonly pool: string | null;
} & Partial<Pick<RingDescription, 'words' | 'threads' | 'holders'>>;

/** The system calls of this thread, for threads that have no `Eal`. */
let ours: Platform | undefined;

/**
 * Opens what another thread of this process shares: memory, a block or a zone ({@link AttachedMemory}), a mapping, a device, a queue, a copy
 * engine, a pool, a ring with its pool. The bytes are the same, at the same addresses; nothing is copied or mapped again.
 *
 * While it is open, the thread that shares it can not free it (EBUSY, naming this thread). Dispose it to let go of it; when this thread ends, in
 * whatever way, it lets go of everything.
 *
 * @param shared what `share()` returned, as it arrived
 * @param platform system calls of this thread. Default: this machine's; tests pass others
 * @throws DmaError EINVAL if `share()` did not return this in this process, or what was shared was freed; ENODEV if the device was lost;
 *   EAGAIN if as many threads use it as there is room for; ENOTSUP where system calls are not available
 */
export function attach<T>(shared: Shared<T>, platform?: Platform): T;
export function attach(shared: PoolDescription, platform?: Platform): Pool;
export function attach(shared: RingDescription, platform?: Platform): Ring;
export function attach(
  shared: Shared<unknown> | PoolDescription | RingDescription,
  platform: Platform = (ours ??= openPlatform()),
): unknown {
  const operation = 'attach';
  mustHave(platform, ['memory', 'kernel', 'events', 'readiness', 'files'], 'platform', operation);
  const checked = unsealed(platform.memory, sealedPart(shared), operation);
  const place = placeOf(captureOrigin(attach));
  // The kind says what it is, and `share` typed it.
  return open(checked, shared, platform, place);
}

/** Pools and rings have another form, which processes can have, too. */
function sealedPart(shared: Shared<unknown> | PoolDescription | RingDescription): Shared<unknown> {
  return reading('attach', 'what is attached', () =>
    typeof shared === 'object' && shared !== null && 'sealed' in shared && shared.sealed !== undefined
      ? shared.sealed
      : (shared as Shared<unknown>),
  );
}

/** @param given what it came in */
function open(shared: Shared<unknown>, given: unknown, platform: Platform, place: string): unknown {
  const operation = 'attach';
  const { kind } = shared;
  switch (kind) {
    case 'memory': {
      const facts = memoryFacts(shared.facts, operation);
      return new AttachedMemory(facts, Hold.take(shared, platform, facts.label, place, operation), platform.memory);
    }
    case 'mapping': {
      const facts = mappingFacts(shared.facts, operation);
      return new AttachedMapping(facts, Hold.take(shared, platform, nameOf(facts), place, operation));
    }
    case 'pool': {
      const { holds: threads, holders, keepers, more } = shared;
      const facts = shared.facts as PoolFacts;
      // Everything that the seal covers, and nothing else.
      if (more.length > 0) return Pool.open({ ...facts, stack: more[0], threads, holders, keepers }, platform, place);
      // The words are in the memory of an Eal with a name: that is held first.
      const hold = Hold.take(shared, platform, `the pool ${facts.name}`, place, operation);
      try {
        return Pool.open({ ...(facts as PoolDescription), keepers }, platform, place, hold);
      } catch (error) {
        hold.leave();
        throw error;
      }
    }
    case 'ring':
      return openRing(shared, given, platform, place);
    case 'device': {
      const facts = deviceFacts(shared.facts, operation);
      const hold = Hold.take(shared, platform, `the device ${facts.name}`, place, operation);
      return new AttachedDevice(facts, hold, shared.more);
    }
    case 'queue': {
      const facts = nvmeQueueFacts(shared.facts);
      const hold = Hold.take(shared, platform, queueName(facts), place, operation);
      const [state, ...more] = shared.more;
      return NvmeQueueOfThread.attach({ holders: shared.holders, state, more }, facts, hold, platform);
    }
    case 'queue-pair': {
      const facts = queuePairFacts(shared.facts);
      const hold = Hold.take(shared, platform, pairName(facts), place, operation);
      return AttachedQueuePair.attach(shared, facts, hold, platform);
    }
    case 'copy-engine': {
      const facts = copyEngineFacts(shared.facts);
      const hold = Hold.take(shared, platform, engineName(facts), place, operation);
      const [state, ...more] = shared.more;
      return AttachedCopyEngine.attach({ holders: shared.holders, state, more }, facts, hold, platform);
    }
  }
}

function openRing(shared: Shared<unknown>, given: unknown, platform: Platform, place: string): Ring {
  const operation = 'attach';
  const { name, event, roomEvent, pool: seal, ...places } = shared.facts as RingFacts;
  const { holds: threads, holders, more } = shared;
  const pool = seal === null ? undefined : poolOfRing(given, seal, platform, place);
  const facts = { kind: 'ring' as const, name, event, roomEvent, pool: undefined };
  if (more.length > 0) return Ring.attach({ ...facts, words: more[0], threads, holders }, platform, { place, pool });
  const wordHold = Hold.take(shared, platform, `the ring ${name}`, place, operation);
  try {
    return Ring.attach({ ...facts, ...(places as Required<typeof places>) }, platform, { place, pool, wordHold });
  } catch (error) {
    wordHold.leave();
    throw error;
  }
}

/** The pool that came with a ring. @param seal of the one that the ring was made for @throws DmaError EINVAL if it is another one */
function poolOfRing(given: unknown, seal: string, platform: Platform, place: string): PoolOpening {
  const operation = 'attach';
  const { pool } = given as RingDescription;
  const shared = pool === undefined ? undefined : unsealed(platform.memory, sealedPart(pool), operation);
  if (shared?.seal !== seal)
    throw invalid(operation, 'the pool of this ring did not come with it', {
      hint: 'send the result of ring.share() as it is: it contains the pool',
    });
  // It is a pool, as the ring was made for one.
  return { key: seal, open: () => open(shared, pool, platform, place) as Pool };
}
