/** Queues of a primary's devices that a secondary works: their rings are memory that both have at the same addresses. */
import { AttachedCopyEngine } from '../drivers/attached-copy-engine.js';
import type { CopyEngineFacts } from '../drivers/copy-engine-state.js';
import { NvmeQueueOfThread } from '../drivers/nvme/attached-queue.js';
import type { AttachedNvmeQueue } from '../drivers/nvme/queue.js';
import type { NvmeQueueFacts } from '../drivers/nvme/shared-queue.js';
import { ended } from '../check.js';
import type { FileStores } from '../bus/lent-registers.js';
import { undoAll, withUndo, type DmaError } from '../errors.js';
import type { HoldOf } from '../memory/shared/hold.js';
import type { SharedWithQueue } from '../memory/shared/words.js';
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

/** A queue that is open here. */
interface OpenQueue extends Disposable {
  /** The primary has told something. */
  look(): void;
  /** The primary has ended. */
  lose(why: DmaError): void;
}

/** What a queue is opened with. */
interface QueueParts {
  readonly with: SharedWithQueue;
  readonly hold: HoldOf;
  readonly platform: Platform;
  /** Descriptors, which are duplicated: how it reaches the device, and the primary. */
  readonly ways: Pick<NvmeQueueFacts, 'calls' | 'interrupt' | 'registers'>;
}

/** The queues of one secondary. */
export class SecondaryQueues {
  readonly #connection: QueueConnection;
  readonly #open = new Map<number, OpenQueue>();
  /** Why none can be used any more. */
  #why: DmaError | undefined;
  /** Memory that this process has mapped for queues, by address: several may have some of it. */
  readonly #memories = new Map<number, { readonly mapped: Mapped; users: number }>();

  constructor(connection: QueueConnection) {
    this.#connection = connection;
  }

  /** Opens the NVMe queue that the primary answered. */
  openQueue(reply: Reply): AttachedNvmeQueue {
    return this.#attach(
      reply,
      'openQueue',
      (facts: NvmeQueueFacts, { with: shared, hold, platform, ways }, operation) =>
        NvmeQueueOfThread.attach(shared, { ...facts, ...ways }, hold, platform, operation),
    );
  }

  /** Opens the copy engine that the primary answered. */
  openCopyEngine(reply: Reply): AttachedCopyEngine {
    return this.#attach(
      reply,
      'openCopyEngine',
      (facts: CopyEngineFacts, { with: shared, hold, platform, ways }, operation) =>
        AttachedCopyEngine.attach(shared, { ...facts, ...ways }, hold, platform, operation),
    );
  }

  /** Opens what the primary answered. The descriptors are closed. */
  #attach<F, T extends OpenQueue>(
    { fields, fds }: Reply,
    operation: string,
    open: (facts: F, parts: QueueParts, operation: string) => T,
  ): T {
    const { platform, keeper } = this.#connection;
    const id = fields.number('id');
    const release = (): void => void keeper.release(id, operation, {}).catch(() => undefined);
    const taken: (() => void)[] = [];
    try {
      const pieces = fields.list('pieces');
      const tables = fields.boolean('hasTable') ? 2 : 0;
      const [calls, ...others] = fds.slice(pieces.length);
      const registers = fields.has('registers') ? fields.objectAt('registers') : undefined;
      const hasInterrupt = fields.boolean('hasInterrupt');
      const expected = [hasInterrupt, registers !== undefined].filter(Boolean).length;
      if (pieces.length < 2 + tables || calls === undefined || others.length !== expected)
        throw nonsense(operation, 'a queue without its memory');
      // The table of processes is that of pools, too, and stays.
      for (const [n, piece] of pieces.entries()) taken.push(this.#map(piece, fds[n], n === 0));
      const [holders, state, ...more] = pieces.slice(0, 2 + tables).map((piece) => this.#words(piece));
      const ways = {
        ...{ calls, interrupt: hasInterrupt ? others[0] : undefined },
        registers: registers === undefined ? undefined : fileOf(registers, others[others.length - 1]),
      };
      const end = (): void => {
        undoAll(taken.reverse());
        release();
      };
      // The queue has still to say that it was let go of, in this memory.
      const leave = (): void => {
        if (this.#open.delete(id)) queueMicrotask(end);
      };
      const parts = { with: { holders, state, more }, hold: this.#holdOf(id, leave), platform, ways };
      // The primary has the same version of the protocol, and is trusted with memory.
      const queue = open(JSON.parse(fields.string('facts', MAX_DOCUMENT)) as F, parts, operation);
      this.#open.set(id, queue);
      return queue;
    } catch (error) {
      const undo = undoAll(taken.reverse());
      release();
      throw withUndo(error, operation, undo);
    } finally {
      for (const fd of fds) platform.files.close(fd);
    }
  }

  /** The primary has told something about a queue, or about one that is closed by now. */
  look(id: number): void {
    this.#open.get(id)?.look();
  }

  /** The primary has ended. */
  lose(why: DmaError): void {
    this.#why = why;
    undoAll([...this.#open.values()].map((queue) => () => queue.lose(why)));
  }

  /** Gives all back, before the memory is unmapped. @param why the error of calls that run */
  close(why: DmaError): void {
    this.#why = why;
    for (const queue of [...this.#open.values()]) undoAll([() => queue.lose(why), () => queue[Symbol.dispose]()]);
  }

  /** What the addresses of a queue need to know of it. */
  #holdOf(id: number, leave: () => void): HoldOf {
    const isThere = (): boolean => this.#why === undefined && this.#open.has(id);
    return {
      leave,
      get live() {
        return isThere();
      },
      mustBeThere: (operation, what) => {
        if (this.#why !== undefined) throw this.#why.with({ operation });
        if (!isThere()) throw ended(operation, `this process has let go of the queue of ${what}`, 'queue.live');
      },
    };
  }

  #words(piece: Fields): Uint8Array {
    const { mirror } = this.#connection.keeper;
    return mirror.views(piece.number('va') as Va, piece.number('length')).views.bytes(0, piece.number('bytes'));
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

/** The registers that the primary lent. */
function fileOf(registers: Fields, fd: number): FileStores {
  const [fdOffset, offset, length] = ['fdOffset', 'offset', 'length'].map((key) => registers.number(key));
  return { kind: 'file', fd, fdOffset, offset, length };
}
