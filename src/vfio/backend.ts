/** Which backend maps for devices of VFIO. */
import type { AsyncDomainBackend } from '../dma/backend.js';
import { invalid } from '../errors.js';
import { IommufdSpace } from './iommufd.js';
import { NoIommuSpace } from './noiommu.js';
import type { KernelSpace } from './space.js';
import { SpaprSpace } from './spapr.js';
import { Type1Space } from './type1.js';
import { IommufdBackend } from './iommufd-backend.js';
import { NoIommuBackend } from './noiommu-backend.js';
import { SpaprBackend } from './spapr-backend.js';
import { VfioType1Backend } from './type1-backend.js';

/** The backend of a domain over `space`, which has a device in it and stays its owner's. EINVAL for a space of another make. */
export function vfioBackend(space: KernelSpace): AsyncDomainBackend {
  if (space instanceof Type1Space) return new VfioType1Backend(space);
  if (space instanceof IommufdSpace) return new IommufdBackend(space);
  if (space instanceof SpaprSpace) return new SpaprBackend(space);
  if (space instanceof NoIommuSpace) return new NoIommuBackend(space.pageSize);
  throw invalid('vfio', `there is no backend for an address space of kind ${space.kind}`);
}
