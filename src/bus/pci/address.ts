/** Addresses of PCI functions: `0000:00:02.0` is domain, bus, device and function, in hexadecimal. */

/**
 * The full address that `text` means, as sysfs writes it; `undefined` if it is not an address. The domain and leading
 * zeros may be left out: `00:02.0`, `0:2.0` and `0000:00:02.0` are the same.
 */
export function parsePciAddress(text: string): string | undefined {
  const match = /^(?:([\da-f]{1,8}):)?([\da-f]{1,2}):([01]?[\da-f])\.([0-7])$/i.exec(text);
  if (match === null) return undefined;
  const [, domain = '0', bus, device, fn] = match;
  const digits = (number: string, width: number): string => parseInt(number, 16).toString(16).padStart(width, '0');
  return `${digits(domain, 4)}:${digits(bus, 2)}:${digits(device, 2)}.${fn}`;
}

/** The requester ID of a function: bus, device and function number in 16 bits. */
export function requesterId(address: string): number {
  const [, bus = '0', device = '0', fn = '0'] = /([\da-f]+):([\da-f]+)\.(\d)$/.exec(address) ?? [];
  return parseInt(bus, 16) * 256 + parseInt(device, 16) * 8 + Number(fn);
}
