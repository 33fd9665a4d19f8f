/** All storms, in the order they run. A new one is a file in storms/ and an entry here. */
import type { StormEntry } from './storm.js';

export const STORMS: readonly StormEntry[] = [
  {
    name: 'views',
    what: 'register, view, map, unmap, unregister',
    rounds: 1_000_000,
    short: 20_000,
    gc: true,
  },
  {
    name: 'growth',
    what: 'owned memory, heaps, pools and zones grow and shrink, with pins and moved views',
    rounds: 60_000,
    short: 2_000,
    gc: true,
  },
  {
    name: 'workers',
    what: 'workers with devices, servers and memory that end in every way',
    rounds: 600,
    short: 14,
  },
  {
    name: 'attached-workers',
    what: 'workers that attach, translate, get and put, and end at any moment',
    rounds: 600,
    short: 8,
  },
  {
    name: 'hostile-clients',
    what: 'clients that lie, flood, stay silent, shrink their files and reset in the middle of a message',
    rounds: 3_000,
    short: 90,
  },
  {
    name: 'hostile-servers',
    what: 'servers that lie, flood, stay silent, shrink their files and die in the middle of a copy',
    rounds: 1_500,
    short: 40,
  },
  {
    name: 'hostile-exchange',
    what: 'peers of the RDMA exchange that lie, flood, do not read, stay silent, leave by halves and reset',
    rounds: 5_000,
    short: 100,
  },
  {
    name: 'hostile-peers',
    what: 'descriptors of every kind, and messages torn, repeated, late and wrong, at both ends',
    rounds: 30,
    short: 2,
  },
  {
    name: 'no-descriptors',
    what: 'all calls with few or no descriptors left',
    rounds: 6_000,
    short: 200,
    // Node opens the modules of a level of imports at once.
    descriptors: 192,
  },
  {
    name: 'no-mappings',
    what: 'all calls near vm.max_map_count',
    rounds: 2_000,
    short: 100,
  },
];
