/** The error of a bus that is asked for the DMA of a device which is not open, or not any more. */
import { DmaError } from '../errors.js';

/** @param device its name, with the bus */
export function closedDevice(device: string): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation: 'dma',
    device,
    reason: 'the device is closed',
    hint: 'eal.probe(name) opens it',
  });
}
