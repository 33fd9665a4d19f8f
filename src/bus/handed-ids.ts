/** PCI ids, as they are handed to another process. */
import type { Fields, JsonObject } from '../fields.js';
import type { IdMatch } from './model.js';

/** @returns null for a device that has none */
export function handedIds(ids: Required<IdMatch> | undefined): JsonObject | null {
  return ids === undefined ? null : { ...ids };
}

/** @throws DmaError EPROTO */
export function readIds(state: Fields, key: string): Required<IdMatch> | undefined {
  if (!state.has(key)) return undefined;
  const ids = state.objectAt(key);
  return {
    vendor: ids.number('vendor'),
    device: ids.number('device'),
    classCode: ids.number('classCode'),
    subsystemVendor: ids.number('subsystemVendor'),
    subsystem: ids.number('subsystem'),
  };
}
