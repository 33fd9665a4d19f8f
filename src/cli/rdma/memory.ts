/** Memory that peers may use, had in any of the three ways. */
import type { DmaAccess } from '../../index.js';
import type { ExtraRegion, RdmaDevice } from '../../entry/rdma.js';
import { takeMemory, type Mode, type Reached, type Reacher } from '../demo/modes.js';

/** Memory that peers can reach. Disposing it unmaps it if necessary, and frees it. */
export interface Shared extends AsyncDisposable {
  readonly memory: Reached;
  /** What peers name it by. */
  readonly rkey: number;
  /** Takes it from peers and device. */
  withdraw(): Promise<void>;
}

/**
 * New memory in `mode` that peers may use as `remote` says. External memory is mapped so; of the other modes, whose memory
 * the library has mapped for every device but for no peer, the part is exposed.
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
