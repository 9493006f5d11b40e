declare module 'millgate:stage/metrics@0.1.0' {
  export function count(name: string, add: bigint): void;
  export function gauge(name: string, value: number): void;
}
