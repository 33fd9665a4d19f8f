/** Memory that peers may use, allocated in any of the three ways. */
import type { DmaAccess } from '../../index.js';
import type { ExtraRegion, RdmaDevice } from '../../entry/rdma.js';
import { takeMemory, type Mode, type Reached, type Reacher } from '../demo/modes.js';

/** Memory that peers can access. Disposing it unmaps it if necessary, and frees it. */
export interface Shared extends AsyncDisposable {
  readonly memory: Reached;
  /** The key for peers. */
  readonly rkey: number;
  /** Takes it from peers and the device. */
  withdraw(): Promise<void>;
}

/**
 * Allocates memory in `mode` that peers may use as `remote` says. External memory is mapped with that right. Memory of
 * the other modes is mapped for every device but for no peer, so it is exposed by another region.
 */
export async function shareMemory(
  mode: Mode,
  reacher: Reacher & { readonly rdma: RdmaDevice },
  bytes: number,
  { remote, label }: { readonly remote: Exclude<DmaAccess, 'read-write'>; readonly label: string },
): Promise<Shared> {
  const memory = await takeMemory(mode, reacher, bytes, { access: remote, remote, label });
  let exposed: ExtraRegion | undefined;
  try {
    if (memory.rkey === undefined) exposed = reacher.rdma.expose({ va: memory.va, length: memory.length }, remote);
  } catch (error) {
    await memory[Symbol.asyncDispose]();
    throw error;
  }
  return {
    memory,
    rkey: exposed?.rkey ?? memory.rkey ?? 0,
    withdraw: async () => {
      exposed?.unregister();
      await memory.withdraw();
    },
    [Symbol.asyncDispose]: async () => {
      exposed?.unregister();
      await memory[Symbol.asyncDispose]();
    },
  };
}
