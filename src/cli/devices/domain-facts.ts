/** Facts about a device's domain, for people and as JSON. */
import { formatSize, type Domain } from '../../index.js';
import { rangeDocument } from '../shared/values.js';

/** The JSON about a domain. `entryLimit` is `null` if there is no limit. */
export function domainDocument(domain: Domain): object {
  const { granule, windows, entryLimit, iova, partialUnmap, pins } = domain.constraints;
  return {
    kind: domain.kind,
    granule,
    windows: windows.map(rangeDocument),
    entryLimit: Number.isFinite(entryLimit) ? entryLimit : null,
    entries: domain.entries,
    iova,
    partialUnmap,
    pins,
  };
}

/** The same as lines for people. */
export function domainLines(domain: Domain): string[] {
  const { granule, windows, entryLimit, iova, partialUnmap, pins } = domain.constraints;
  const limit = Number.isFinite(entryLimit) ? `at most ${entryLimit} mappings` : 'any number of mappings';
  return [
    `${domain.kind}, in units of ${formatSize(granule)}, ${limit} (${domain.entries} in use)`,
    `IOVAs: ${IOVA_CHOICE[iova]}${iova === 'free' ? ` in ${windows.map(String).join(', ')}` : ''}`,
    `parts of a mapping ${partialUnmap ? 'can' : 'can not'} be unmapped; mapping ${pins ? 'pins' : 'does not pin'} memory`,
  ];
}

const IOVA_CHOICE = {
  table: "from the memory's own table",
  free: 'free to choose',
  identity: 'always the virtual addresses',
  ignored: 'ignored; devices use virtual addresses',
} as const;
