/** Opens what another thread shares. */
import { AttachedDevice, deviceFacts } from '../bus/attached-device.js';
import { AttachedMapping, mappingFacts, nameOf } from '../dma/attached-mapping.js';
import { AttachedMemory, memoryFacts } from '../memory/attached-memory.js';
import { nvmeQueueFacts, NvmeQueueOfThread, queueName } from '../drivers/nvme/attached-queue.js';
import { reading } from '../check.js';
import { Pool, type PoolDescription } from '../memory/pool/pool.js';
import { Hold } from '../memory/shared/hold.js';
import { unsealed, type Shared } from '../memory/shared/shared.js';
import { captureOrigin, placeOf } from '../origin.js';
import { openPlatform } from '../platform/open.js';
import type { Platform } from '../platform/ports.js';

type PoolFacts = Omit<PoolDescription, 'stack' | 'threads' | 'holders' | 'keepers' | 'sealed'>;

/** The system calls of this thread, for threads that have no `Eal`. */
let ours: Platform | undefined;

/**
 * Opens what another thread of this process shares: memory, a block or a zone ({@link AttachedMemory}), a mapping, a device, a queue. The bytes are
 * the same, at the same addresses; nothing is copied or mapped again.
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
export function attach(
  shared: Shared<unknown> | PoolDescription,
  platform: Platform = (ours ??= openPlatform()),
): unknown {
  const operation = 'attach';
  const checked = unsealed(platform.memory, sealedPart(shared), operation);
  const place = placeOf(captureOrigin(attach));
  // The kind says what it is, and `share` typed it.
  return open(checked, platform, place, operation);
}

/** Pools have another form, which processes can have, too. */
function sealedPart(shared: Shared<unknown> | PoolDescription): Shared<unknown> {
  return reading('attach', 'what is attached', () =>
    typeof shared === 'object' && shared !== null && 'sealed' in shared && shared.sealed !== undefined
      ? shared.sealed
      : (shared as Shared<unknown>),
  );
}

function open(shared: Shared<unknown>, platform: Platform, place: string, operation: string): unknown {
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
      if (more.length > 0) return Pool.attach({ ...facts, stack: more[0], threads, holders, keepers }, platform, place);
      // The words are in the memory of an Eal with a name: that is held first.
      const hold = Hold.take(shared, platform, `the pool ${facts.name}`, place, operation);
      try {
        return Pool.attach({ ...(facts as PoolDescription), keepers }, platform, place, hold);
      } catch (error) {
        hold.leave();
        throw error;
      }
    }
    case 'device': {
      const facts = deviceFacts(shared.facts, operation);
      const hold = Hold.take(shared, platform, `the device ${facts.name}`, place, operation);
      return new AttachedDevice(facts, hold, shared.more);
    }
    case 'queue': {
      const facts = nvmeQueueFacts(shared.facts);
      const hold = Hold.take(shared, platform, queueName(facts), place, operation);
      return NvmeQueueOfThread.attach(shared, facts, hold, platform);
    }
  }
}
