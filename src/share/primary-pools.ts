/** The primary's side of pools and rings: what a secondary gets to open one, and what comes back when it ends. */
import { DmaError, invalid, undoAll, withUndo } from '../errors.js';
import type { LongWorkOptions } from '../long-work.js';
import type { ExternalMemory } from '../memory/external.js';
import type { Pool, PoolDescription } from '../memory/pool/pool.js';
import type { PoolOptions, Pools } from '../memory/pool/pools.js';
import type { Ring } from '../memory/pool/ring.js';
import type { RingOptions, Rings } from '../memory/pool/rings.js';
import type { WordMemory } from '../memory/shared/words.js';
import type { Platform } from '../platform/ports.js';
import { copiesOf, type Answer } from './peer.js';
import { pieceOf } from './regions.js';
import type { Method, Session } from './server.js';
import type { SharedWords } from './shared-words.js';
import type { Fields, JsonObject } from '../fields.js';
import { nameIn, optionsIn } from './wire.js';

/** What it needs of the primary. */
export interface PrimaryPoolsSources {
  readonly pools: Pools;
  readonly rings: Rings;
  readonly words: SharedWords;
  readonly platform: Pick<Platform, 'files'>;
  /** Is memory at this address mapped in the secondary? */
  readonly reaches: (session: Session, va: number) => boolean;
  /** Long work that the secondary can cancel. */
  readonly work: <T>(session: Session, fields: Fields, run: (work: LongWorkOptions) => Promise<T>) => Promise<T>;
}

/** Words that a secondary maps, in its order, and a descriptor of each. */
interface SentWords {
  readonly words: JsonObject[];
  readonly fds: number[];
}

/** Pools and rings for the secondaries of one `Eal`. */
export class PrimaryPools {
  readonly #sources: PrimaryPoolsSources;
  /** Who has words mapped. */
  readonly #users = new Map<ExternalMemory, Set<Session>>();

  constructor(sources: PrimaryPoolsSources) {
    this.#sources = sources;
    sources.words.gone = (memory) => {
      // Nobody uses them any more; what takes their place is told later.
      for (const { peer } of this.#users.get(memory) ?? [])
        peer.tell('memory.remove', { va: memory.va, length: memory.length });
      this.#users.delete(memory);
    };
  }

  /** A secondary is not connected any more. */
  left(session: Session): void {
    for (const users of this.#users.values()) users.delete(session);
  }

  /** What secondaries may ask. */
  calls(): Record<string, Method> {
    const { pools, rings, work } = this.#sources;
    return {
      'pools.list': () => ({ result: { pools: [...pools].map(({ name }) => ({ name })) } }),
      'pools.find': (session, { fields }) => {
        const pool = pools.find(nameIn(fields));
        return pool === undefined ? {} : this.#sharePool(session, pool, 'pools.find');
      },
      'pools.create': async (session, { fields }) => {
        const pool = await work(session, fields, (more) =>
          pools.createAsync({ ...(optionsIn(fields) as PoolOptions & JsonObject), external: undefined, ...more }),
        );
        return orFree(pool, () => this.#sharePool(session, pool, 'pools.create'));
      },
      'pools.free': (_, { fields }) => {
        found(pools.find(nameIn(fields)), 'pool', fields, 'pools.free').free();
        return {};
      },
      'rings.list': () => ({ result: { rings: [...rings].map(({ name }) => ({ name })) } }),
      'rings.find': (session, { fields }) => {
        const ring = rings.find(nameIn(fields));
        return ring === undefined ? {} : this.#shareRing(session, ring, 'rings.find');
      },
      'rings.create': (session, { fields }) => {
        const { pool: poolName, ...options } = optionsIn(fields);
        const pool =
          poolName === undefined
            ? undefined
            : found(pools.find(poolName as string), 'pool', { raw: { name: poolName } }, 'rings.create');
        const ring = rings.create(nameIn(fields), { ...(options as RingOptions & JsonObject), pool });
        return orFree(ring, () => this.#shareRing(session, ring, 'rings.create'));
      },
      'rings.free': (_, { fields }) => {
        found(rings.find(nameIn(fields)), 'ring', fields, 'rings.free').free();
        return {};
      },
    };
  }

  #sharePool(session: Session, pool: Pool, operation: string): Answer {
    this.#mustReach(session, pool, operation);
    const facts = factsOf(pool.share());
    const { words, fds } = this.#send(session, wordsOf(pool));
    return { result: { pool: facts, words }, ...copiesOf(this.#sources.platform, fds) };
  }

  #shareRing(session: Session, ring: Ring, operation: string): Answer {
    if (ring.pool !== undefined) this.#mustReach(session, ring.pool, operation);
    const { name, event, roomEvent, pool } = ring.share();
    const ofPool = ring.pool === undefined ? [] : wordsOf(ring.pool);
    const { words, fds } = this.#send(session, [...wordsOf(ring), ...ofPool]);
    const facts = pool === undefined ? undefined : factsOf(pool);
    const copies = copiesOf(this.#sources.platform, [...fds, event, roomEvent]);
    return { result: { ring: { name, pool: facts }, words }, ...copies };
  }

  /** @throws DmaError ENOTSUP unless the secondary has the memory of the pool */
  #mustReach(session: Session, { name, chunks }: Pool, operation: string): void {
    if (chunks.every(({ va }) => this.#sources.reaches(session, va))) return;
    throw new DmaError({
      code: 'ENOTSUP',
      operation,
      reason: `the memory of the pool ${name} is not attached in this process`,
      hint: 'attach the external memory that it is in first; memory without a descriptor can not be attached',
    });
  }

  #send(session: Session, memories: readonly WordMemory[]): SentWords {
    const all = memories.map((each) => ({ bytes: each.byteLength, memory: this.#sources.words.memoryOf(each) }));
    for (const { memory } of all) {
      const users = this.#users.get(memory) ?? new Set<Session>();
      this.#users.set(memory, users.add(session));
    }
    return {
      words: all.map(({ bytes, memory }) => ({ bytes, ...pieceOf(memory.area) })),
      fds: all.flatMap(({ memory }) => memory.fd ?? []),
    };
  }
}

/** Shares what was just made; if that fails, it was not made. */
function orFree(made: Pool | Ring, share: () => Answer): Answer {
  try {
    return share();
  } catch (error) {
    throw withUndo(error, 'share', undoAll([() => made.free()]));
  }
}

/** In the order in which the secondary opens them. */
function wordsOf({ name, sharing }: Pool | Ring): WordMemory[] {
  if (sharing === undefined) throw invalid('share', `${name} is not shared`);
  const { words } = sharing;
  return ['stack' in words ? words.stack : words.words, words.threads, words.holders];
}

function factsOf({ name, forDevices, owner, cacheSize, shape, chunks }: PoolDescription): JsonObject {
  return { name, forDevices, owner, cacheSize, shape: { ...shape }, chunks: chunks.map((chunk) => ({ ...chunk })) };
}

/** @throws DmaError ENOENT */
function found<T>(thing: T | undefined, kind: string, fields: Pick<Fields, 'raw'>, operation: string): T {
  if (thing !== undefined) return thing;
  const reason = `there is no ${kind} ${JSON.stringify(fields.raw['name'])}`;
  throw new DmaError({ code: 'ENOENT', operation, reason });
}
