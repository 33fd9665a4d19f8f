/** A bus without hardware: its devices take every mapping and do nothing, so that what is measured is the library. */
import { Range, type Bus, type DomainConstraints, type Driver, type Iova } from '../src/index.js';

/** How IOVAs are had: `any` lets the library use the VA; `low` has room only below all VAs, so that it must allocate. */
const WINDOWS = {
  any: [new Range(0 as Iova, 2 ** 48)],
  low: [new Range((2 ** 20) as Iova, 2 ** 40)],
};

/** The bus. Names: `bench:NAME,iovas=any|low[,domain=NAME]`; devices with the same domain share it. */
export function benchBus(): Bus {
  const constraints = (windows: DomainConstraints['windows']): DomainConstraints => ({
    granule: 4096,
    windows,
    entryLimit: Infinity,
    iova: 'free',
    partialUnmap: false,
    pins: false,
  });
  const spaces = { any: constraints(WINDOWS.any), low: constraints(WINDOWS.low) };
  return {
    name: 'bench',
    parse: (name) => name,
    open: async () => ({
      ids: undefined,
      access: undefined,
      onLost: () => undefined,
      close: () => undefined,
    }),
    dma: {
      dmaDomain: ({ name, args }) => ({
        key: args.get('domain') ?? name,
        kind: 'no-op',
        constraints: args.get('iovas') === 'low' ? spaces.low : spaces.any,
      }),
      dmaMap: () => undefined,
      dmaUnmap: (_device, segment) => segment.length,
    },
  };
}

/** Its driver. */
export const benchDriver: Driver = { name: 'bench', buses: ['bench'], probe: () => undefined };
