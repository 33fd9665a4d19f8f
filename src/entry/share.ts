/** `anydma/share`: what processes that are attached to an Eal work with. `Eal.attach` of `anydma` attaches. */
import '../disposables.js';

export {
  type AttachOptions,
  Secondary,
  type SecondaryEvents,
  type SecondaryExternals,
  type SecondaryHeaps,
  type SecondaryZones,
  type SharedFacts,
} from '../share/secondary.js';
export type { SecondaryPools } from '../share/secondary-pools.js';
export { SecondaryDevice, SecondaryMapping } from '../share/secondary-devices.js';
export { SecondaryBlock, SecondaryExternal, SecondaryMemory, SecondaryZone } from '../share/secondary-memory.js';
