/** The errors of what is asked of a device, or of its driver, that is not open any more. */
import { DmaError } from '../errors.js';

/** Of a bus that is asked for the DMA of a device which is not open. @param device its name, with the bus */
export function closedDevice(device: string): DmaError {
  return new DmaError({
    code: 'ENODEV',
    operation: 'dma',
    device,
    reason: 'the device is closed',
    hint: 'eal.probe(name) opens it',
  });
}

/** Of a driver that has let its device go. */
export function closedDriver(operation: string): DmaError {
  const hint = 'the device was removed, or its Eal stopped: eal.probe(name) opens it';
  return new DmaError({ code: 'ECANCELED', operation, reason: 'the driver is closed', hint });
}
