# Who may come to the web endpoints of one App, as Consul intentions. Consul's service mesh enforces them.

terraform {
  required_version = ">= 1.5"
  required_providers {
    consul = {
      source  = "hashicorp/consul"
      version = ">= 2.20"
    }
  }
}

resource "consul_config_entry" "endpoint" {
  for_each = toset(var.labels)

  kind = "service-intentions"
  name = each.value

  config_json = jsonencode({
    Sources = concat(
      [for source in var.allowed : {
        Name       = source
        Action     = "allow"
        Type       = "consul"
        Precedence = 9
      }],
      [{
        Name       = "*"
        Action     = "deny"
        Type       = "consul"
        Precedence = 8
      }]
    )
  })
}
