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
export type { SecondaryPools, SecondaryRings } from '../share/secondary-pools.js';
export type { RingOptions, Rings } from '../memory/pool/rings.js';
export type { RingDescription } from '../memory/pool/ring.js';
export type { RingSide } from '../memory/pool/ring-words.js';
export { SecondaryDevice, SecondaryMapping, type SecondaryQueueOptions } from '../share/secondary-devices.js';
export { SecondaryBlock, SecondaryExternal, SecondaryMemory, SecondaryZone } from '../share/secondary-memory.js';
export type { Successor } from '../share/hand-over.js';
