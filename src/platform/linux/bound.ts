/** Ports that are classes, as objects of functions. */

/**
 * What `port` has, with its methods bound to it as properties of their own. So a port can be spread, to replace one call of
 * it or to make one port of several parts, and its methods can be passed on.
 */
export function bound<Port extends object>(port: Port): Port {
  const methods = Object.entries(Object.getOwnPropertyDescriptors(Object.getPrototypeOf(port)))
    .filter(([name]) => name !== 'constructor')
    .map(([name, { value }]) => [name, (value as (...args: unknown[]) => unknown).bind(port)]);
  return { ...port, ...Object.fromEntries(methods) } as Port;
}
