/** What can be said of a device behind its name, for help pages: in the words of buses and drivers. */
import { BUS_KEYS } from '../../bus/builtin.js';
import { DRIVER_KEYS } from '../../drivers/builtin.js';

export const DEVICE_KEYS_TEXT = [
  'Keys follow the name, with commas.',
  ...BUS_KEYS,
  ...DRIVER_KEYS,
  'A key that is not known is refused.',
].join(' ');
