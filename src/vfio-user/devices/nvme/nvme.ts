/** A model of an NVMe controller over disk images. */
import { createHash } from 'node:crypto';
import { resolve } from 'node:path';
import { DmaError, invalid, undoAll } from '../../../errors.js';
import { openPlatform } from '../../../platform/open.js';
import type { Platform } from '../../../platform/ports.js';
import type { ModelFactory } from '../model.js';
import { NvmeController } from './controller.js';
import { Faults } from './faults.js';
import { bytesOf } from './identify-pages.js';
import { Image, NODE_CALLS, type ImageCalls } from './image.js';
import { Namespace } from './namespace.js';
import { nvmeSettings, type NvmeModelOptions } from './options.js';

/**
 * Makes NVMe controllers. The images are opened when a host makes its controller, and closed with it.
 *
 * @param platform of the images, and `calls` that read and write them: for tests
 * @throws DmaError EINVAL for options out of range; what it returns throws the errors of {@link Image}
 */
export function nvmeModel(
  options?: NvmeModelOptions,
  platform?: Platform,
  calls: ImageCalls = NODE_CALLS,
): ModelFactory {
  const settings = nvmeSettings(options);
  return (host) => {
    const system = platform ?? openPlatform();
    if (system.limitation !== undefined)
      throw new DmaError({ code: 'ENOTSUP', operation: 'nvmeModel', reason: system.limitation });
    const serial = settings.serial ?? serialOf(settings.namespaces[0].file);
    const namespaces = new Map<number, Namespace>();
    try {
      for (const [index, namespace] of settings.namespaces.entries()) {
        const id = index + 1;
        const image = new Image(system, namespace, calls);
        const { file = 'memory', blockSize } = namespace;
        namespaces.set(id, new Namespace(id, image, blockSize, bytesOf(`${serial} ${id}`)));
        if (image.bytes < blockSize)
          throw invalid('nvmeModel', `${file}: it has ${image.bytes} bytes, less than a block of ${blockSize}`, {
            hint: 'say a size, and an empty file gets it',
          });
      }
      const faults = settings.faults.length === 0 ? undefined : new Faults(settings.faults);
      return new NvmeController(host, { ...settings, serial }, namespaces, faults, system.files.batch());
    } catch (error) {
      undoAll(
        [...namespaces.values()].map(
          ({ image }) =>
            () =>
              image.close(),
        ),
      );
      throw error;
    }
  };
}

/** A serial number that a file always gets; without a file, one that is new. */
function serialOf(file: string | undefined): string {
  const name = file === undefined ? `memory ${process.pid} ${process.hrtime.bigint()}` : resolve(file);
  return `AD${createHash('sha256').update(name).digest('hex').slice(0, 16).toUpperCase()}`;
}
