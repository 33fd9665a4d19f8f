/** `--iommu`: how PCI devices reach their IOMMU. */
import { Option } from 'commander';
import type { ContainerChoice } from '../entry/driver.js';

const CHOICES: readonly ContainerChoice[] = ['auto', 'iommufd', 'type1', 'spapr', 'noiommu'];

/** The option for commands that open devices. */
export function iommuOption(): Option {
  return new Option(
    '--iommu <way>',
    'how PCI devices get at their IOMMU; auto is iommufd where there is one, else type1 or spapr; noiommu protects nothing',
  )
    .choices(CHOICES)
    .default('auto');
}
