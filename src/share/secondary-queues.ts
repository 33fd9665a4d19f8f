/** Queue pairs of a primary's controllers that a secondary works: their rings are memory that both have at the same addresses. */
import { NvmeQueueOfThread } from '../drivers/nvme/attached-queue.js';
import type { AttachedNvmeQueue } from '../drivers/nvme/queue.js';
import type { NvmeQueueFacts } from '../drivers/nvme/shared-queue.js';
import { undoAll, withUndo, type DmaError } from '../errors.js';
import type { Platform } from '../platform/ports.js';
import { queueMicrotask } from '../timers.js';
import type { Va } from '../units.js';
import type { Mapped } from './mirror.js';
import type { MemoryKeeper } from './secondary-memory.js';
import type { Reply } from './peer.js';
import { nonsense, type Fields } from '../fields.js';
import { MAX_DOCUMENT } from './wire.js';

/** What queues need of the connection. */
export interface QueueConnection {
  readonly keeper: MemoryKeeper;
  readonly platform: Platform;
}

/** The queues of one secondary. */
export class SecondaryQueues {
  readonly #connection: QueueConnection;
  readonly #open = new Set<NvmeQueueOfThread>();
  /** Memory that this process has mapped for queues, by address: several may have some of it. */
  readonly #memories = new Map<number, { readonly mapped: Mapped; users: number }>();

  constructor(connection: QueueConnection) {
    this.#connection = connection;
  }

  /** Opens what the primary answered. The descriptors are closed. */
  open({ fields, fds }: Reply): AttachedNvmeQueue {
    const { platform, keeper } = this.#connection;
    const operation = 'openQueue';
    const id = fields.number('id');
    const release = (): void => void keeper.release(id, operation, {}).catch(() => undefined);
    const taken: (() => void)[] = [];
    try {
      const pieces = fields.list('pieces');
      const calls = fds.at(-1);
      if (pieces.length < 3 || fds.length !== pieces.length + 1 || calls === undefined)
        throw nonsense(operation, 'a queue without its memory');
      // The table of processes is that of pools, too, and stays.
      for (const [n, piece] of pieces.entries()) taken.push(this.#map(piece, fds[n], n === 0));
      const [holders, state] = pieces.map((piece) =>
        keeper.mirror.views(piece.number('va') as Va, piece.number('length')).views.bytes(0, piece.number('bytes')),
      );
      // The primary has the same version of the protocol, and is trusted with memory.
      const facts = { ...(JSON.parse(fields.string('facts', MAX_DOCUMENT)) as NvmeQueueFacts), calls };
      const opened: { queue?: NvmeQueueOfThread } = {};
      const end = (): void => {
        if (opened.queue !== undefined) this.#open.delete(opened.queue);
        undoAll(taken.reverse());
        release();
      };
      // The queue has still to say that it was let go of, in this memory.
      const leave = (): void => {
        if (opened.queue !== undefined) queueMicrotask(end);
      };
      const queue = NvmeQueueOfThread.attach({ holders, state, more: [] }, facts, { leave }, platform, operation);
      opened.queue = queue;
      this.#open.add(queue);
      return queue;
    } catch (error) {
      const undo = undoAll(taken.reverse());
      release();
      throw withUndo(error, operation, undo);
    } finally {
      for (const fd of fds) platform.files.close(fd);
    }
  }

  /** The primary has ended. */
  lose(why: DmaError): void {
    for (const queue of this.#open) queue.lose(why);
  }

  /** Gives all back, before the memory is unmapped. */
  close(): void {
    undoAll([...this.#open].map((queue) => () => queue[Symbol.dispose]()));
  }

  /** Maps memory, unless another queue has. @returns undoes it */
  #map(piece: Fields, fd: number, stays: boolean): () => void {
    const va = piece.number('va');
    const { mirror } = this.#connection.keeper;
    if (stays) {
      if (!mirror.has(va, piece.number('length'))) mirror.add([piece], [fd]);
      return () => undefined;
    }
    const memory = this.#memories.get(va) ?? { mapped: mirror.add([piece], [fd]), users: 0 };
    memory.users++;
    this.#memories.set(va, memory);
    return () => {
      if (--memory.users > 0) return;
      this.#memories.delete(va);
      memory.mapped.unmap();
    };
  }
}
