/** A bus without hardware: its devices accept every mapping and do nothing, so that only the library is measured. */
import { Range, type Iova } from '../../src/index.js';
import type { AddressSpace, Bus, Constraints, Driver, Segment } from '../../src/entry/driver.js';

/** The source of IOVAs: `any` lets the library use the VA; `low` has a window below all VAs, so the library must allocate. */
const WINDOWS = {
  any: [new Range(0 as Iova, 2 ** 48)],
  low: [new Range((2 ** 20) as Iova, 2 ** 40)],
};

/** The bus. Names: `bench:NAME,iovas=any|low[,domain=NAME]`; devices with the same domain share it. */
export function benchBus(): Bus {
  const constraints = (windows: Constraints['windows']): Constraints => ({
    granule: 4096,
    windows,
    entryLimit: Infinity,
    iova: 'free',
    partialUnmap: false,
    pins: false,
  });
  const spaces = new Map<string, AddressSpace>();
  const limits = { any: constraints(WINDOWS.any), low: constraints(WINDOWS.low) };
  return {
    name: 'bench',
    parse: (name) => name,
    open: async () => ({
      ids: undefined,
      access: undefined,
      onLost: () => undefined,
      close: () => undefined,
    }),
    spaceOf: ({ name, args }) => {
      const key = args.get('domain') ?? name;
      const constraints = args.get('iovas') === 'low' ? limits.low : limits.any;
      const space = spaces.get(key) ?? new NoSpace(constraints, () => spaces.delete(key));
      spaces.set(key, space);
      return space;
    },
  };
}

/** An address space that does nothing. */
class NoSpace implements AddressSpace {
  readonly kind = 'no-op';
  readonly constraints: Constraints;
  readonly #closed: () => void;

  constructor(constraints: Constraints, closed: () => void) {
    this.constraints = constraints;
    this.#closed = closed;
  }

  map(): undefined {
    return undefined;
  }

  unmap({ length }: Segment): number {
    return length;
  }

  close(): void {
    this.#closed();
  }
}

/** Its driver. */
export const benchDriver: Driver = { name: 'bench', buses: ['bench'], probe: () => undefined };
