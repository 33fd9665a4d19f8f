/** Pools and rings of a primary in a secondary: they are used in shared memory, without a message. */
import type { Area } from '../memory/area.js';
import { Pool, type PoolDescription } from '../memory/pool/pool.js';
import type { PoolOptions } from '../memory/pool/pools.js';
import { Ring } from '../memory/pool/ring.js';
import type { RingOptions } from '../memory/pool/rings.js';
import { optionsOf } from '../check.js';
import { invalid, throwFirst, undoAll } from '../errors.js';
import type { LongWorkOptions } from '../long-work.js';
import type { Platform } from '../platform/ports.js';
import type { Iova, Va } from '../units.js';
import type { Mirror } from './mirror.js';
import type { Reply } from './peer.js';
import { nonsense, type Fields, type JsonObject } from '../fields.js';
import { STAYS } from '../stays.js';

/** What pools need of the connection. */
export interface PoolConnection {
  ask(name: string, question: JsonObject): Promise<Reply>;
  work(name: string, question: JsonObject, options: object, operation: string): Promise<Reply>;
  readonly keeper: { readonly mirror: Mirror };
  readonly platform: Platform;
}

/** The pools of a primary. */
export class SecondaryPools {
  /** @internal */
  readonly stays = STAYS;
  readonly #connection: PoolConnection;
  readonly #attached = new Set<Pool>();

  /** @internal */
  constructor(connection: PoolConnection) {
    this.#connection = connection;
  }

  /** The names of all pools. */
  async list(): Promise<string[]> {
    const { fields } = await this.#connection.ask('pools.list', {});
    return fields.list('pools').map((pool) => pool.string('name'));
  }

  /**
   * Opens the pool of that name here; `undefined` if there is none. Elements have the same numbers and addresses as in the
   * primary. Free it to let go of it: the primary's pool stays. What this process has of it when it ends goes back.
   *
   * @throws DmaError ENOTSUP if its memory can not be mapped here; EAGAIN if too many processes use pools
   */
  async find(name: string): Promise<Pool | undefined> {
    return this.#open(await this.#connection.ask('pools.find', { name }));
  }

  /** Lets the primary create a pool, and opens it here; it stays when this process ends. @throws DmaError as `Pools.createAsync` */
  async create(options: Omit<PoolOptions, 'external'> & LongWorkOptions): Promise<Pool> {
    const pool = this.#open(await this.#connection.work('pools.create', {}, options, 'pools.create'));
    if (pool === undefined) throw nonsense('pools.create', 'no pool');
    return pool;
  }

  /** Lets the primary free a pool. @throws DmaError ENOENT; EBUSY while a process has it, this one included */
  async free(name: string): Promise<void> {
    await this.#connection.ask('pools.free', { name });
  }

  /** @internal Was it opened here? */
  has(pool: Pool): boolean {
    return this.#attached.has(pool);
  }

  /** @internal Lets go of all pools, before the memory is unmapped. */
  close(): void {
    const pools = [...this.#attached];
    this.#attached.clear();
    throwFirst(undoAll(pools.map((pool) => () => pool[Symbol.dispose]())), 'close');
  }

  #open({ fields, fds }: Reply): Pool | undefined {
    const { platform, keeper } = this.#connection;
    try {
      if (!fields.has('pool')) return undefined;
      const facts = fields.objectAt('pool');
      const [stack, threads, holders] = mapWords(keeper.mirror, fields, fds);
      const pool = Pool.attach({ ...described(facts), stack, threads, holders, keepers: [] }, platform);
      endDead(this.#attached);
      this.#attached.add(pool);
      return pool;
    } finally {
      for (const fd of fds) platform.files.close(fd);
    }
  }
}

/** The rings of a primary. */
export class SecondaryRings {
  /** @internal */
  readonly stays = STAYS;
  readonly #connection: PoolConnection;
  readonly #pools: SecondaryPools;
  readonly #attached = new Set<Ring>();

  /** @internal */
  constructor(connection: PoolConnection, pools: SecondaryPools) {
    this.#connection = connection;
    this.#pools = pools;
  }

  /** The names of all rings. */
  async list(): Promise<string[]> {
    const { fields } = await this.#connection.ask('rings.list', {});
    return fields.list('rings').map((ring) => ring.string('name'));
  }

  /**
   * Opens the ring of that name here, with its pool; `undefined` if there is none. Free it to let go of it: the primary's ring stays.
   *
   * @throws DmaError ENOTSUP if the memory of its pool can not be mapped here; EAGAIN if too many processes use pools and rings
   */
  async find(name: string): Promise<Ring | undefined> {
    return this.#open(await this.#connection.ask('rings.find', { name }));
  }

  /**
   * Lets the primary create a ring, and opens it here; it stays when this process ends.
   *
   * @param options.pool a pool of the primary, opened here
   * @throws DmaError as `Rings.create`; ENOENT if the primary has no such pool
   */
  async create(name: string, options: RingOptions): Promise<Ring> {
    const { pool, ...others } = { ...options };
    optionsOf({ pool }, { pool: Pool }, 'rings.create');
    // Only a pool that is known here is looked into: any object can say that it is one.
    if (pool !== undefined && !this.#pools.has(pool) && ![...this.#attached].some((ring) => ring.pool === pool))
      throw invalid('rings.create', `the pool ${pool.name} was not opened by this secondary, or was freed`, {
        hint: 'pools.find(name) opens it',
      });
    if (pool?.live === false) throw invalid('rings.create', `the pool ${pool.name} was freed`);
    const ring = this.#open(
      await this.#connection.work('rings.create', { name }, { ...others, pool: pool?.name }, 'rings.create'),
    );
    if (ring === undefined) throw nonsense('rings.create', 'no ring');
    return ring;
  }

  /** Lets the primary free a ring. @throws DmaError ENOENT; EBUSY while a process has it, this one included */
  async free(name: string): Promise<void> {
    await this.#connection.ask('rings.free', { name });
  }

  /** @internal Lets go of all rings, before the memory is unmapped. */
  close(): void {
    const rings = [...this.#attached];
    this.#attached.clear();
    throwFirst(undoAll(rings.map((ring) => () => ring[Symbol.dispose]())), 'close');
  }

  #open({ fields, fds }: Reply): Ring | undefined {
    const { platform, keeper } = this.#connection;
    try {
      if (!fields.has('ring')) return undefined;
      const facts = fields.objectAt('ring');
      const [words, threads, holders, stack, threadsOfPool] = mapWords(keeper.mirror, fields, fds);
      const pool: PoolDescription | undefined = facts.has('pool')
        ? { ...described(facts.objectAt('pool')), stack, threads: threadsOfPool, holders, keepers: [] }
        : undefined;
      const [event, roomEvent] = [fds.at(-2), fds.at(-1)];
      if (event === undefined || roomEvent === undefined) throw nonsense('rings.find', 'no event');
      const name = facts.string('name');
      const opening =
        pool === undefined
          ? undefined
          : { key: platform.memory.addressOf(stack), open: () => Pool.attach(pool, platform) };
      const description = { kind: 'ring' as const, name, words, threads, holders, event, roomEvent, pool };
      const ring = Ring.attach(description, platform, { pool: opening });
      endDead(this.#attached);
      this.#attached.add(ring);
      return ring;
    } finally {
      for (const fd of fds) platform.files.close(fd);
    }
  }
}

/** Ends and forgets those that were freed, here or by force in the primary: nothing of them stays open. */
function endDead(attached: Set<Pool | Ring>): void {
  for (const each of attached) {
    if (each.live) continue;
    attached.delete(each);
    undoAll([() => each[Symbol.dispose]()]);
  }
}

/** Words of the primary, mapped here. */
function mapWords(mirror: Mirror, fields: Fields, fds: readonly number[]): Uint8Array[] {
  return fields.list('words').map((piece, n) => {
    const [va, length] = [piece.number('va') as Va, piece.number('length')];
    // Those of all are shared, and those of this one may be here from an earlier time.
    if (!mirror.has(va, length)) mirror.add([piece], fds.slice(n, n + 1));
    return mirror.views(va, length).views.bytes(0, piece.number('bytes'));
  });
}

function described(facts: Fields): Omit<PoolDescription, 'stack' | 'threads' | 'holders' | 'keepers'> {
  const shape = facts.objectAt('shape');
  return {
    kind: 'pool',
    name: facts.string('name'),
    forDevices: facts.boolean('forDevices'),
    owner: facts.string('owner') as Area['owner'],
    cacheSize: facts.number('cacheSize'),
    shape: {
      size: shape.number('size'),
      headroom: shape.number('headroom'),
      align: shape.number('align'),
      stride: shape.number('stride'),
    },
    chunks: facts.list('chunks').map((chunk) => ({
      va: chunk.number('va') as Va,
      length: chunk.number('length'),
      count: chunk.number('count'),
      iova: chunk.has('iova') ? (chunk.number('iova') as Iova) : undefined,
    })),
  };
}
