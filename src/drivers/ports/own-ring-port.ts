/** `vdev:ring0`: a port with rings of its own, which another thread or program finds by their names. */
import { throwFirst, undoAll } from '../../errors.js';
import type { Ring } from '../../memory/pool/ring.js';
import type { Rings } from '../../memory/pool/rings.js';
import type { CheckedConfig } from '../../net/port-base.js';
import { ringNames } from './ring-names.js';
import { RingPortBase, type RingPair } from './ring-port-base.js';

/** What it is made of. */
interface OwnRings {
  /** Of the device. */
  readonly name: string;
  readonly number: number;
  /** Where rings are made. */
  readonly rings: Rings;
  /** What their names begin with. */
  readonly ringName: string;
  /** How many numbers each holds. */
  readonly size: number;
  readonly queues: number;
}

/** A port with rings of its own: made for the pool of its packets when it is started, and freed when it is stopped. */
export class OwnRingPort extends RingPortBase {
  readonly #facts: OwnRings;

  constructor(facts: OwnRings) {
    super(facts.name, facts.number, facts.queues);
    this.#facts = facts;
  }

  protected override async begin(config: CheckedConfig): Promise<void> {
    const { rings, ringName, size, queues } = this.#facts;
    const { pool } = config.packets;
    const made: Ring[] = [];
    const make = (name: string): Ring => {
      const ring = rings.create(name, { size, producers: 'one', consumers: 'one', pool });
      made.push(ring);
      // So that the first who uses a side is known as the one who works it.
      ring.share();
      return ring;
    };
    try {
      const pairs: RingPair[] = [];
      for (let queue = 0; queue < queues; queue++) {
        const names = ringNames(ringName, queue);
        pairs.push({ rx: make(names.in), tx: make(names.out) });
      }
      this.useRings(pairs);
      await super.begin(config);
    } catch (error) {
      this.useRings([]);
      undoAll(made.map((ring) => () => ring.free()));
      throw error;
    }
  }

  /** @throws DmaError EBUSY while another thread of this process has a ring; those stay, until `eal.stop()` */
  protected override async finish(): Promise<void> {
    await super.finish();
    const all = this.rings.flatMap(({ rx, tx }) => [rx, tx]);
    this.useRings([]);
    // Another process sees that they are gone.
    throwFirst(
      undoAll(all.map((ring) => () => ring.live && ring.free({ force: ring.threadsHere === 0 }))),
      'port.stop',
    );
  }
}
